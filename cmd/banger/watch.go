package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// watchPace is how often `status --watch` prints.
const watchPace = time.Second

// watch prints again and again, on a terminal always in the same place, until printing fails.
func (c *client) watch(print func() error) error {
	out := c.std.out
	_, onTerminal := terminal(out)
	for {
		var page bytes.Buffer
		c.std.out = &page
		err := print()
		c.std.out = out
		if err != nil {
			return err
		}
		text := page.String() + "\n"
		if onTerminal {
			// Line by line over the old page, then the rest is cleared: nothing flickers.
			text = "\x1b[H" + strings.ReplaceAll(page.String(), "\n", "\x1b[K\n") + "\x1b[J"
		}
		if _, err := io.WriteString(out, text); err != nil {
			return &failure{exitFailed, err}
		}
		time.Sleep(watchPace)
	}
}

func (c *client) eventsCmd() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "events [NAME]", Short: "Print the events of a VM, or of all", Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.complete(1),
		Long: "Print the events of a VM, or of all: Unix time, number, VM, what happened, detail.\nPrints the file `events`, and with -f what `wait/events` gives.",
		RunE: func(_ *cobra.Command, args []string) error {
			dir, what := c.mount, "cannot read the events"
			err := c.tree().check()
			if len(args) == 1 {
				what += " of " + args[0]
				dir, err = c.tree().vm(args[0])
			}
			if err != nil {
				return err
			}
			if !follow {
				return c.show(what, dir+"/events", "")
			}
			return explain(what, "", followEvents(dir, c.std.out))
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes, until the VM is removed")
	return cmd
}

// followEvents prints the events so far and those to come, each once, until the VM is removed or nobody reads the copy.
func followEvents(dir string, out io.Writer) error {
	// Opened first, so that nothing is missed; what is in both is told by its number.
	stream, err := open(dir+"/wait/events", os.O_RDONLY)
	if err != nil {
		return err
	}
	defer stream.Close()
	past, err := read(dir + "/events")
	if err != nil {
		return err
	}
	last := uint64(0)
	print := func(line string) error {
		if fields := strings.Fields(line); len(fields) > 1 {
			if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil && fields[0] != "lost" {
				if n <= last {
					return nil
				}
				last = n
			}
		}
		_, err := fmt.Fprintln(out, line)
		return err
	}
	for _, line := range lines(past) {
		if err := print(line); err != nil {
			return unread(err)
		}
	}
	for s := bufio.NewScanner(plainReader{stream}); ; {
		if !s.Scan() {
			return s.Err()
		}
		if err := print(s.Text()); err != nil {
			return unread(err)
		}
	}
}

// unread drops the error of a copy that nobody reads any more.
func unread(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}
