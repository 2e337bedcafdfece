package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// followPace is how often `logs -f` looks for new lines, and for a daemon that has gone.
const followPace = 250 * time.Millisecond

// follow is what `logs` and `events` print.
type follow struct {
	on   bool // also what is still to come
	tail int  // the last lines of the past only, -1 for all
}

func followFlags(cmd *cobra.Command) *follow {
	f := new(follow)
	cmd.Flags().BoolVarP(&f.on, "follow", "f", false, "go on with new lines, until the VM is removed")
	cmd.Flags().IntVarP(&f.tail, "tail", "n", -1, "only that many lines of the past (-1: all)")
	return f
}

// past returns the last lines of a text, as many as were asked for.
func (f *follow) past(text string) string {
	if f.tail < 0 {
		return text
	}
	return tail(text, f.tail)
}

// tail returns the last n lines of a text.
func tail(text string, n int) string {
	from := len(text)
	for ; n > 0 && from > 0; n-- {
		from = strings.LastIndexByte(text[:from-1], '\n') + 1
	}
	return text[from:]
}

// rejoin calls more again after each end of a daemon, until more returns true, which means that
// nothing can follow, or fails while a daemon serves the tree.
func (c *client) rejoin(more func() (ended bool, err error)) error {
	for {
		ended, err := more()
		if ended || err != nil && codeOf(err) != exitNoDaemon && c.tree.check() == nil {
			return err
		}
		// For a moment after a daemon's death the kernel answers in its place.
		for said := false; ; said = true {
			time.Sleep(followPace)
			if c.tree.check() == nil {
				break
			}
			if !said {
				c.report(fmt.Errorf("bangerd is gone from %s; waiting for it", c.tree))
			}
		}
	}
}

// ended returns true if a path is no longer in a tree that a daemon serves, and otherwise the error
// that was met.
func (t tree) ended(path string, met error) (bool, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && t.check() == nil {
		return true, nil
	}
	return false, met
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
