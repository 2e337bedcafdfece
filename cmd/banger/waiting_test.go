package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// usages has each command of banger as it is typed, with the files that it waits for when the daemon
// does. A command without one waits in another way than a fifo does, or for nothing.
var usages = map[string]struct{ args, waits string }{
	"console":          {"console web", "vms/web/console"},
	"cp":               {"cp web:/tmp/a out", ""},
	"doctor":           {"doctor", ""},
	"events":           {"events web", "vms/web/events"},
	"exec":             {"exec web true", "vms/web/exec/1/status"},
	"export":           {"export web -", "vms/web/wait/export"},
	"image builtin":    {"image builtin", "images/builtin/wait/ready"},
	"image gc":         {"image gc", "blobs"},
	"image ls":         {"image ls", "images/x/status"},
	"image pull":       {"image pull rootfs:/a.tar x", "images/x/wait/ready"},
	"image rm":         {"image rm none", ""},
	"import":           {"import list", "wait/import"},
	"kill":             {"kill web", "vms/web/state"},
	"logs":             {"logs web", "vms/web/log"},
	"ls":               {"ls", "list"},
	"pause":            {"pause web", "vms/web/state"},
	"ports":            {"ports web", "vms/web/ports"},
	"proxy":            {"proxy web", "vms/web/exec/1/data"},
	"restart":          {"restart web", "vms/web/state"},
	"resume":           {"resume web", "vms/web/state"},
	"rm":               {"rm none", ""},
	"run":              {"run new -m 1G", ""},
	"shell":            {"shell web", "vms/web/exec/1/status"},
	"snapshot create":  {"snapshot create web two", ""},
	"snapshot ls":      {"snapshot ls db", "vms/db/snapshots/one/size"},
	"snapshot restore": {"snapshot restore db one", "vms/db/restore"},
	"snapshot rm":      {"snapshot rm web none", ""},
	"ssh-config":       {"ssh-config", ""},
	"start":            {"start web", "vms/web/state"},
	"status":           {"status web", "vms/web/health"},
	"stop":             {"stop web", "vms/web/state"},
	"sync":             {"sync web:/tmp out", ""},
	"top":              {"top", "list.json"},
	"wait":             {"wait web", "vms/web/wait/healthy"},
}

// usageTree makes a tree in which each command of usages ends at once.
func usageTree(t *testing.T) string {
	root := web(t)
	for name, text := range map[string]string{
		"list.json": `[{"name":"web","state":"running"}]` + "\n",
		"blobs":     "", "wait/import": "", "images/x/status": "ready\n", "images/x/source": "",
		"images/x/wait/ready": "1.5\n", "vms/web/console": "", "vms/web/events": "",
		"images/builtin/wait/ready": "1.5\n", "images/builtin/source": "",
		"images/builtin/status": "ready\n",
		"vms/web/wait/export":   "", "vms/web/fs/tmp/a": "a", "vms/web/exec/clone": "1\n",
		"vms/web/exec/1/data": "", "vms/web/exec/1/stderr": "",
		"vms/web/exec/1/status": "exited 0\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// process returns a command line of banger as a process of its own, to be started in root.
func process(ctx context.Context, root, args string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "BANGER_TEST_ARGS=--mount "+root+" "+args)
	return cmd
}

// TestUsages expects that the table has all commands.
func TestUsages(t *testing.T) {
	seen := 0
	var look func(cmd *cobra.Command, above string)
	look = func(cmd *cobra.Command, above string) {
		for _, sub := range cmd.Commands() {
			name := above + sub.Name()
			if look(sub, name+" "); sub.HasSubCommands() {
				continue
			}
			if seen++; usages[name].args == "" {
				t.Errorf("usages lacks banger %s", name)
			}
		}
	}
	if look(new(client).rootCmd(), ""); seen != len(usages) {
		t.Errorf("usages has %d commands, banger %d", len(usages), seen)
	}
}

// TestSignalsEndCommands ends each command with SIGTERM while it waits for the daemon, exec with a
// second one. The exit status has the signal's number, and the terminal is as it was.
func TestSignalsEndCommands(t *testing.T) {
	for name, u := range usages {
		if u.waits == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			root := usageTree(t)
			path := filepath.Join(root, u.waits)
			if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o644)); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := process(ctx, root, u.args)
			near, far := openPTY(t)
			go func() { _, _ = io.Copy(io.Discard, near) }() // ends with the test
			before, err := term.GetState(int(far.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdin, cmd.Stdout, cmd.Stderr = far, far, far
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for n := 0; n < 5 && ctx.Err() == nil; time.Sleep(time.Millisecond) {
				if n++; !waits(cmd.Process.Pid) {
					n = 0
				}
			}
			ended := make(chan struct{})
			go func() {
				_ = cmd.Wait()
				close(ended)
			}()
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if name == "exec" || name == "shell" { // what it waits for took the first
				time.Sleep(2 * repeatWait)
				_ = cmd.Process.Signal(syscall.SIGTERM)
			}
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Errorf("SIGTERM does not end banger %s", u.args)
				_ = cmd.Process.Kill()
				<-ended
			}
			if after, err := term.GetState(int(far.Fd())); err != nil || *after != *before {
				t.Errorf("banger %s leaves the terminal as %v, %v, not %v", u.args, after, err, before)
			}
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			told := status.Signaled() && status.Signal() == syscall.SIGTERM ||
				status.ExitStatus() == exitSignalled+int(syscall.SIGTERM)
			if !told {
				t.Errorf("banger %s ends with %v", u.args, cmd.ProcessState)
			}
		})
	}
}

// waits reports whether a thread of a process opens or reads a file: syscall of proc(5) has the
// number of its system call. All files of a tree but a fifo are there at once.
func waits(pid int) bool {
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/syscall")
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		number, _, _ := strings.Cut(string(text), " ")
		if number == strconv.Itoa(syscall.SYS_OPENAT) || number == strconv.Itoa(syscall.SYS_READ) {
			return true
		}
	}
	return false
}
