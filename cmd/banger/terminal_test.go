package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
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

// TestOnlyTopUsesTheTerminal runs commands on a terminal that answers no query. All but top print
// text without escape sequences and end by themselves.
func TestOnlyTopUsesTheTerminal(t *testing.T) {
	root := web(t)
	for _, args := range []string{"--help", "top --help", "ls", "status web", "start web", "top"} {
		near, far := openPTY(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, "/proc/self/exe")
		cmd.Env = append(os.Environ(), "TERM=xterm-256color",
			"BANGER_TEST_ARGS=--mount "+root+" "+args)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = far, far, far
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		far.Close()
		var out strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := near.Read(buf)
			out.Write(buf[:n])
			if args == "top" && strings.Contains(out.String(), "\x1b") {
				_, _ = io.WriteString(near, "q")
			}
			if err != nil { // EIO: no process has the far end open
				break
			}
		}
		_ = cmd.Wait()
		if ctx.Err() != nil {
			t.Errorf("banger %s does not end", args)
		}
		cancel()
		if strings.Contains(out.String(), "\x1b") != (args == "top") {
			t.Errorf("banger %s printed %q", args, out.String())
		}
	}
}
