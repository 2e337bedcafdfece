package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// followPace is how often `logs -f` looks for new lines.
const followPace = 250 * time.Millisecond

func followFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().BoolP("follow", "f", false, "go on with new lines, until the VM is removed")
}

func (c *client) logsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Print a VM's log: the VMM's output and banger's actions",
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeVMs(1),
	}
	follow := followFlag(cmd)
	cmd.RunE = c.onVM(func(v vm, _ []string) error {
		doing, path := "cannot read the log of "+v.name, v.file("log")
		f, err := open(path, os.O_RDONLY)
		if err != nil {
			return explain(doing, "", err)
		}
		defer f.Close()
		return explain(doing, "", untilUnread(c.std.out, func() error {
			return copyLog(f, c.std.out, *follow, func() bool {
				_, err := os.Stat(path)
				return err == nil
			})
		}))
	})
	return cmd
}

// copyLog copies a growing file; with follow until it no longer exists.
func copyLog(f io.Reader, out io.Writer, follow bool, exists func() bool) error {
	for {
		if err := transfer(out, f, streamBuffer); err != nil || !follow || !exists() {
			return err
		}
		time.Sleep(followPace)
	}
}

func (c *client) eventsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "events [NAME]", Short: "Print the events of a VM, or of all",
		Long: `Print the events of a VM, or of all: Unix time, number, VM, what happened, detail.
The events of all leave out those for a VM's readers only, such as refused writes.
Prints the file ` + "`events`, and with -f `wait/events`.",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.completeVMs(1),
	}
	follow := followFlag(cmd)
	show := func(of, dir string) error {
		doing := "cannot read the events" + of
		if !*follow {
			return c.show(doing, dir+"/events")
		}
		out := c.std.out
		return explain(doing, "", untilUnread(out, func() error { return followEvents(dir, out) }))
	}
	ofAll := c.onTree(func([]string) error { return show("", string(c.tree)) })
	ofVM := c.onVM(func(v vm, _ []string) error { return show(" of "+v.name, v.dir) })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return ofAll(cmd, args)
		}
		return ofVM(cmd, args)
	}
	return cmd
}

// followEvents prints past and future events, each once, until the VM is removed.
func followEvents(dir string, out io.Writer) error {
	// The stream is opened first, so that no event is missed. The numbers show which are in both.
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
	lines := bufio.NewScanner(io.MultiReader(strings.NewReader(past), stream))
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] != "lost" {
			if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
				if n <= last {
					continue
				}
				last = n
			}
		}
		if _, err := fmt.Fprintln(out, lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// untilUnread calls copyAll until it returns or, if out is a pipe, until the reader of out is gone.
// A copy that waits for more would otherwise stay behind in `banger logs -f web | head -1`.
func untilUnread(out io.Writer, copyAll func() error) error {
	signal.Ignore(syscall.SIGPIPE) // a write fails with EPIPE instead, which is no failure here
	ended := make(chan error, 2)
	go func() { ended <- copyAll() }()
	if f, ok := out.(*os.File); ok {
		go func() {
			if waitUnread(f) {
				ended <- nil
			}
		}()
	}
	err := <-ended
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// waitUnread blocks until a pipe has no reader. It returns false at once for anything but a pipe.
func waitUnread(f *os.File) bool {
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return false
	}
	pipe := []unix.PollFd{{Fd: int32(f.Fd())}} // poll always reports POLLERR
	n, err := retry(func() (int, error) { return unix.Poll(pipe, -1) })
	return err == nil && n == 1 && pipe[0].Revents&unix.POLLERR != 0
}
