package main

import (
	"bufio"
	"bytes"
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
	"golang.org/x/term"
)

// watchPace is how often `status --watch` prints.
const watchPace = time.Second

// watch prints again and again, on a terminal always in the same place, until printing fails.
func (c *client) watch(print func() error) error {
	out := c.std.out
	screen, onTerminal := terminal(out)
	for first := true; ; first = false {
		var page bytes.Buffer
		c.std.out = &page
		err := print()
		c.std.out = out
		if err != nil {
			return err
		}
		text := page.String() + "\n"
		if onTerminal {
			width, height, err := term.GetSize(int(screen.Fd()))
			if err != nil {
				return &failure{exitFailed, fmt.Errorf("cannot use this terminal: %w", err)}
			}
			if text = screenful(page.String(), width, height); first {
				text = strings.Repeat("\n", height) + text // what was there scrolls up and is kept
			}
		}
		if _, err := io.WriteString(out, text); err != nil {
			return &failure{exitFailed, err}
		}
		time.Sleep(watchPace)
	}
}

// screenful writes a page line by line over the old one, then clears the rest, so that nothing flickers. What does not
// fit is cut: it would wrap or scroll. The last line is left to the cursor.
func screenful(page string, width, height int) string {
	rows := lines(page)
	var b strings.Builder
	b.WriteString("\x1b[H")
	for _, row := range rows[:min(len(rows), max(0, height-1))] {
		b.WriteString(fit(row, width) + "\x1b[K\r\n")
	}
	return b.String() + "\x1b[J"
}

func (c *client) eventsCmd() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "events [NAME]", Short: "Print the events of a VM, or of all", Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.complete(1),
		Long: "Print the events of a VM, or of all: Unix time, number, VM, what happened, detail.\nThose of all leave out what only the readers of a VM see, as why a write was refused.\nPrints the file `events`, and with -f what `wait/events` gives.",
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
			return explain(what, "", untilUnread(c.std.out, func() error { return followEvents(dir, c.std.out) }))
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

// untilUnread copies until that ends or, out being a pipe, its reader is gone: what waits for something to copy would else
// stay behind `| head -1`.
func untilUnread(out io.Writer, copy func() error) error {
	signal.Ignore(syscall.SIGPIPE) // a write says it, too, and that is no failure either
	ended := make(chan error, 2)
	go func() { ended <- copy() }()
	if f, ok := out.(*os.File); ok {
		go func() {
			if abandoned(f) {
				ended <- nil
			}
		}()
	}
	return <-ended
}

// abandoned waits until a pipe's reader is gone; false at once for what is no pipe.
func abandoned(f *os.File) bool {
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return false
	}
	for {
		pipe := []unix.PollFd{{Fd: int32(f.Fd())}} // POLLERR is always told
		if n, err := unix.Poll(pipe, -1); err != unix.EINTR {
			return n == 1 && pipe[0].Revents&unix.POLLERR != 0
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
