package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// leaveKey is Ctrl-], which ends a console as it ends telnet.
const leaveKey = 0x1d

func (c *client) consoleCmd() *cobra.Command {
	return &cobra.Command{
		Use: "console NAME", Short: "Use a VM's serial console; Ctrl-] leaves",
		Long: `Use a VM's serial console: show what the guest prints from now on, send typed keys.
Ctrl-] leaves. Without a terminal, standard input is sent until its end.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeVMs(1),
		RunE: c.onVM(func(v vm, _ []string) error {
			f, err := open(v.file("console"), os.O_RDWR)
			if err != nil {
				return explain("cannot open the console of "+v.name, "", err)
			}
			if in, ok := terminal(c.std.in); ok {
				old, err := term.MakeRaw(int(in.Fd()))
				if err != nil {
					return terminalError(err)
				}
				defer term.Restore(int(in.Fd()), old)
				fmt.Fprintf(c.std.err, "console of %s, Ctrl-] leaves\r\n", v.name)
				defer fmt.Fprint(c.std.err, "\r\n")
			}
			return interruptible(func() error { // the terminal must not stay raw
				err := relay(c.std.in, f, c.std.out)
				return explain("cannot use the console of "+v.name, "", err)
			})
		}),
	}
}

// relay copies in to the console and the console to out. It returns at the leave key, at the end of
// in, or at the end of the console. The other direction goes on until the process ends.
func relay(in io.Reader, console io.ReadWriter, out io.Writer) error {
	ended := make(chan error, 2)
	go func() { ended <- transfer(out, console, streamBuffer) }()
	go func() { ended <- sendTyped(in, console) }()
	return <-ended
}

// sendTyped copies in to the console, up to the leave key.
func sendTyped(in io.Reader, console io.Writer) error {
	buf := make([]byte, 4096)
	for {
		n, readErr := in.Read(buf)
		part, _, leave := bytes.Cut(buf[:n], []byte{leaveKey})
		if len(part) > 0 {
			if _, err := console.Write(part); err != nil {
				return err
			}
		}
		if leave || errors.Is(readErr, io.EOF) {
			return nil
		}
		if readErr != nil {
			return readErr
		}
	}
}
