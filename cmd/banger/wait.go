package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// waitStates are the files of wait/ beside tcp/PORT.
var waitStates = []string{"healthy", "running", "stopped", "paused"}

// parseCondition returns the file below wait/ for a condition as a user types it.
func parseCondition(condition string) (string, error) {
	if slices.Contains(waitStates, condition) {
		return condition, nil
	}
	if port, ok := strings.CutPrefix(condition, "tcp/"); ok {
		if n, err := parsePort(port); err == nil {
			return "tcp/" + strconv.Itoa(n), nil
		}
	}
	all := strings.Join(waitStates, ", ")
	return "", fmt.Errorf("cannot wait for %q: use one of %s, tcp/PORT", condition, all)
}

func parsePort(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("%q is not a port, a number from 1 to 65535", s)
	}
	return n, nil
}

func (c *client) waitCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait NAME [healthy|running|stopped|paused|tcp/PORT]",
		Short: "Wait for a condition of a VM, healthy by default; print the seconds it took",
		Args:  cobra.RangeArgs(1, 2),
	}
	names := c.completeVMs(1)
	const noSpace = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	cmd.ValidArgsFunction = func(c *cobra.Command, a []string, typed string) ([]string, directive) {
		if len(a) == 1 {
			return append(slices.Clone(waitStates), "tcp/"), noSpace
		}
		return names(c, a, typed)
	}
	timeout := cmd.Flags().Duration("timeout", 0, "fail after this `TIME`, e.g. 30s (0: never)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		condition := waitStates[0]
		if len(args) == 2 {
			var err error
			if condition, err = parseCondition(args[1]); err != nil {
				return err
			}
		}
		return c.onVM(func(v vm, _ []string) error {
			took, err := v.wait(condition, *timeout, nil)
			if err == nil {
				fmt.Fprintln(c.std.out, took)
			}
			return err
		})(cmd, args)
	}
	return cmd
}

// wait blocks until a condition holds and returns the seconds from the VM's file. It calls tick, if
// that is not nil, meanwhile. A timeout of 0 is none.
func (v vm) wait(condition string, timeout time.Duration, tick func()) (string, error) {
	took, err := readTicking(v.file("wait/"+condition), timeout, tick)
	if err == errTimeout {
		return "", failf(exitTimeout, "%s is not %s after %v", v.name, condition, timeout)
	}
	return took, v.explain("cannot wait for "+v.name+" to be "+condition, err)
}

var errTimeout = errors.New("timed out")

// readTicking is readTrimmed with a timeout, and with calls of tick while the file blocks.
// After a timeout the read goes on until the process ends.
func readTicking(path string, timeout time.Duration, tick func()) (string, error) {
	var text string
	done := make(chan error, 1)
	go func() {
		var err error
		text, err = readTrimmed(path)
		done <- err
	}()
	var late <-chan time.Time
	if timeout > 0 {
		late = time.After(timeout)
	}
	var ticks <-chan time.Time
	if tick != nil {
		ticker := time.NewTicker(progressPace)
		defer ticker.Stop()
		ticks = ticker.C
	}
	for {
		select {
		case err := <-done:
			return text, err
		case <-late:
			return "", errTimeout
		case <-ticks:
			tick()
		}
	}
}
