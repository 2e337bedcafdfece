package main

import (
	"bytes"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

func (c *client) logsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Print a VM's log: the VMM's output and banger's actions",
		Long: "Print a VM's log: the VMM's output and banger's actions.\n" +
			"With -f it goes on over restarts of the daemon, each line once, until Ctrl-C.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeVMs(1),
	}
	flags := followFlags(cmd)
	cmd.RunE = c.onVM(func(v vm, _ []string) error {
		l := logReader{tree: c.tree, path: v.file("log"), out: c.std.out}
		err := untilUnread(c.std.out, func() error {
			if err := l.begin(flags); err != nil || !flags.on {
				return err
			}
			return c.rejoin(l.follow)
		})
		return explain("cannot read the log of "+v.name, "", err)
	})
	return cmd
}

// seenMost is how many of the last bytes a logReader knows, to find its place after a restart of
// the daemon. It is less than a trimmed log keeps.
const seenMost = 4096

// logReader copies a growing log.
type logReader struct {
	tree tree
	path string
	out  io.Writer

	f    *os.File // nil when it has to be opened again
	self os.FileInfo
	pos  int    // bytes that were read of f
	seen []byte // the last of them
}

// begin opens the log and prints what it has.
func (l *logReader) begin(flags *follow) error {
	text, err := l.open()
	if err != nil {
		return err
	}
	_, err = io.WriteString(l.out, flags.past(string(text)))
	return err
}

// open opens the log and returns what it has.
func (l *logReader) open() (text []byte, err error) {
	if l.f, err = open(l.path, os.O_RDONLY); err != nil {
		return nil, err
	}
	if l.self, err = l.f.Stat(); err == nil {
		text, err = io.ReadAll(l.f)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	l.pos, l.seen = 0, nil
	l.note(text)
	return text, nil
}

func (l *logReader) close() {
	l.f.Close()
	l.f = nil
}

// note remembers what was read.
func (l *logReader) note(text []byte) {
	l.pos += len(text)
	l.seen = append(l.seen, text...)
	l.seen = bytes.Clone(l.seen[max(0, len(l.seen)-seenMost):])
}

// follow copies new lines until the VM is removed, or until an error after which it can be called
// again.
func (l *logReader) follow() (ended bool, err error) {
	if l.f == nil {
		pos, seen := l.pos, l.seen
		text, err := l.open()
		if err != nil {
			return l.tree.ended(l.path, err)
		}
		if _, err := l.out.Write(text[resume(text, seen, pos):]); err != nil {
			return true, err
		}
	}
	defer l.close()
	buf := make([]byte, streamBuffer)
	for {
		n, err := l.f.Read(buf)
		if n > 0 {
			l.note(buf[:n])
			if _, err := l.out.Write(buf[:n]); err != nil {
				return true, err
			}
			continue
		}
		if err != nil && err != io.EOF {
			return false, err
		}
		// A VM of the same name that was made since is another.
		now, err := os.Stat(l.path)
		if err != nil {
			return l.tree.ended(l.path, nil)
		}
		if !os.SameFile(l.self, now) {
			return true, nil
		}
		time.Sleep(followPace)
	}
}

// resume returns where a log goes on after the bytes that were seen, which ended at pos before. The
// offsets of a log that was trimmed meanwhile are others. Of a log that has nothing of what was
// seen, all is new.
func resume(text, seen []byte, pos int) int {
	if pos <= len(text) && bytes.HasSuffix(text[:pos], seen) {
		return pos
	}
	if i := bytes.LastIndex(text, seen); i >= 0 {
		return i + len(seen)
	}
	return 0
}
