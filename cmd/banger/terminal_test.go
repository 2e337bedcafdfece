package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain runs the command line in BANGER_TEST_ARGS in place of the tests, if it is set.
func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv("BANGER_TEST_ARGS"); ok {
		os.Exit(run(strings.Fields(args), stdio{os.Stdin, os.Stdout, os.Stderr}))
	}
	os.Exit(m.Run())
}

// openPTY returns both ends of a new terminal. Nothing answers at the near end.
func openPTY(t *testing.T) (near, far *os.File) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	if err := unix.IoctlSetPointerInt(int(near.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(near.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// colours are the attributes that commands may print on a terminal. None moves the cursor or asks.
var colours = regexp.MustCompile(`\x1b\[[0-9]*m`)

// TestOnlyTopUsesTheTerminal runs each command, and its help, on a terminal that answers no query. All
// but top print text without escape sequences other than colours, and without those if the user
// wants none. They end by themselves, and leave what was typed to the shell. Console, proxy and
// shell send that to the guest.
func TestOnlyTopUsesTheTerminal(t *testing.T) {
	all := map[string]bool{"--help": true, "nonsense": true} // what leaves the input alone
	for name, u := range usages {
		all[u.args] = name != "top" && !slices.Contains(takers, name)
		all[name+" --help"] = true
	}
	for args, leaves := range all {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			out := onTerminal(t, args)
			if strings.Contains(colours.ReplaceAllString(out, ""), "\x1b") != (args == "top") {
				t.Errorf("banger %s printed %q", args, out)
			}
			if leaves && !strings.Contains(out, "left typed") {
				t.Errorf("banger %s took what was typed: %q", args, out)
			}
			if args == "top" || !strings.Contains(out, "\x1b") {
				return
			}
			for _, env := range []string{"NO_COLOR=x", "TERM=dumb", "TERM="} {
				if out := onTerminal(t, args, env); strings.Contains(out, "\x1b") {
					t.Errorf("%s banger %s printed %q", env, args, out)
				}
			}
		})
	}
}

// takers are the commands that take what is typed.
var takers = []string{"console", "proxy", "shell"}

// onTerminal returns what a shell prints that runs a command of banger, and then reads a line that
// was typed before. env is added to its environment.
func onTerminal(t *testing.T, args string, env ...string) string {
	near, far := openPTY(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(near, "typed\n"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := process(ctx, usageTree(t), args)
	cmd.Env = append(cmd.Env, env...)
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `"$0"; read -r line; echo "left $line"`, self}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = far, far, far
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	far.Close()
	word, _, _ := strings.Cut(args, " ")
	if slices.Contains(takers, word) { // the command takes any number of lines, the shell reads one
		go func() {
			for ctx.Err() == nil {
				_, _ = io.WriteString(near, "\n")
				time.Sleep(50 * time.Millisecond)
			}
		}()
	}
	var out strings.Builder
	buf := make([]byte, 4096)
	for err = nil; err == nil; { // EIO: no process has the far end open
		var n int
		n, err = near.Read(buf)
		out.Write(buf[:n])
		if args == "top" && strings.Contains(out.String(), "\x1b") {
			_, _ = io.WriteString(near, "q\n")
		}
	}
	_ = cmd.Wait()
	if ctx.Err() != nil {
		t.Errorf("banger %s does not end", args)
	}
	return out.String()
}
