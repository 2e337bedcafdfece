package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// leaveKey is Ctrl-], which ends a console as it ends telnet.
const leaveKey = 0x1d

// followPace is how often `logs -f` looks for more.
const followPace = 250 * time.Millisecond

func (c *client) consoleCmd() *cobra.Command {
	return &cobra.Command{
		Use: "console NAME", Short: "Use a VM's serial console; Ctrl-] leaves", Args: cobra.ExactArgs(1), ValidArgsFunction: c.complete(1),
		Long: "Use a VM's serial console: what the guest prints from now on is shown, what is typed is sent, Ctrl-] leaves.\nWithout a terminal, standard input is sent until its end.",
		RunE: func(_ *cobra.Command, args []string) error {
			name := args[0]
			dir, err := c.tree().vm(name)
			if err != nil {
				return err
			}
			f, err := open(filepath.Join(dir, "console"), os.O_RDWR)
			if err != nil {
				return explain("cannot open the console of "+name, "", err)
			}
			if in, ok := terminal(c.std.in); ok {
				old, err := term.MakeRaw(int(in.Fd()))
				if err != nil {
					return &failure{exitFailed, fmt.Errorf("cannot use this terminal: %w", err)}
				}
				defer term.Restore(int(in.Fd()), old)
				fmt.Fprintf(c.std.err, "console of %s, Ctrl-] leaves\r\n", name)
				defer fmt.Fprint(c.std.err, "\r\n")
			}
			return explain("cannot use the console of "+name, "", relay(c.std.in, f, c.std.out))
		},
	}
}

// relay passes in to the console and the console to out until the leave key, the end of in, or the end of the console.
// The direction that is then still blocked is left to the end of the process.
func relay(in io.Reader, console io.ReadWriter, out io.Writer) error {
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(plainWriter{out}, plainReader{console})
		ended <- err
	}()
	go func() { ended <- typed(in, console) }()
	return <-ended
}

// plainReader and plainWriter hide that they are files: io.Copy would else use splice or copy_file_range, which go by sizes and the
// page cache and end where a file that grows had its end.
type (
	plainReader struct{ io.Reader }
	plainWriter struct{ io.Writer }
)

// typed writes what comes from in, up to the leave key.
func typed(in io.Reader, console io.Writer) error {
	buf := make([]byte, 4096)
	for {
		n, rerr := in.Read(buf)
		part, _, leave := bytes.Cut(buf[:n], []byte{leaveKey})
		if len(part) > 0 {
			if _, err := console.Write(part); err != nil {
				return err
			}
		}
		switch {
		case leave || errors.Is(rerr, io.EOF):
			return nil
		case rerr != nil:
			return rerr
		}
	}
}

func (c *client) logsCmd() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Print what the VMM printed and banger did", Args: cobra.ExactArgs(1), ValidArgsFunction: c.complete(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := c.tree().vm(args[0])
			if err != nil {
				return err
			}
			path := filepath.Join(dir, "log")
			f, err := open(path, os.O_RDONLY)
			if err != nil {
				return explain("cannot read the log of "+args[0], "", err)
			}
			defer f.Close()
			return explain("cannot read the log of "+args[0], "", untilUnread(c.std.out, func() error {
				return copyLog(f, c.std.out, follow, func() bool {
					_, err := os.Stat(path)
					return err == nil
				})
			}))
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes, until the VM is removed")
	return cmd
}

// copyLog copies a file that grows; with follow until it no longer exists or nobody reads the copy.
func copyLog(f io.Reader, out io.Writer, follow bool, exists func() bool) error {
	for {
		if _, err := io.Copy(plainWriter{out}, plainReader{f}); err != nil {
			if errors.Is(err, syscall.EPIPE) {
				return nil
			}
			return err
		}
		if !follow || !exists() {
			return nil
		}
		time.Sleep(followPace)
	}
}
