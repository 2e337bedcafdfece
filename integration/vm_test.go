package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/host"
)

func healthy(d *daemon, name string) error {
	_, err := read(d.path(name, "wait", "healthy"))
	return err
}

// client returns a command of banger against this daemon.
func (d *daemon) client(args ...string) *exec.Cmd {
	args = append([]string{"--mount", d.mount}, args...)
	return exec.Command(filepath.Join(bin, "banger"), args...)
}

// inGuest runs a shell's line in a VM and returns what it prints.
func (d *daemon) inGuest(t *testing.T, vm, line string) string {
	t.Helper()
	out, err := d.client("exec", vm, "--", "/bin/sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

func (d *daemon) read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.mount, path))
	must(t, err)
	return strings.TrimSpace(string(b))
}

// boot makes a VM of an image and waits until it is healthy.
func (d *daemon) boot(t *testing.T, vm, image, settings string) {
	t.Helper()
	must(t, os.Mkdir(d.path(vm), 0o755))
	config := "image " + image + "\n" + settings
	for _, w := range [][2]string{{"config", config}, {"state", "start"}} {
		if err := write(d.path(vm, w[0]), w[1]); err != nil {
			t.Fatalf("%v: %s", err, readFile(d.path(vm, "error")))
		}
	}
	d.await(t, vm, "healthy")
}

// await reads a file of wait/, for bootTime at most.
func (d *daemon) await(t *testing.T, vm, what string) {
	t.Helper()
	limit := fmt.Sprint(int(bootTime.Seconds()))
	out, err := exec.Command("timeout", limit, "cat", d.path(vm, "wait", what)).CombinedOutput()
	if err != nil {
		t.Fatalf("%s is not %s: %v: %s\n%s", vm, what, err, out, readFile(d.path(vm, "console")))
	}
	t.Logf("%s: %s after %s s", vm, what, strings.TrimSpace(string(out)))
}

// stopTidily stops a VM, which must end by itself and print these words in this order.
func (d *daemon) stopTidily(t *testing.T, vm string, words ...string) {
	t.Helper()
	console := openTerminal(t, d, vm)
	must(t, write(d.path(vm, "state"), "stop"))
	state, failed := d.read(t, "vms/"+vm+"/state"), d.read(t, "vms/"+vm+"/error")
	if state != "stopped" || failed != "" {
		t.Errorf("%s is %s: %s", vm, state, failed)
	}
	waitUntil(t, "the end of the console of "+vm, func() bool {
		select {
		case <-console.ended:
			return true
		default:
			return false
		}
	})
	rest := console.String()
	for _, w := range append(words, "reboot: Power down") {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Fatalf("%q is not on the console of %s, in its order:\n%s", w, vm, console)
		}
		rest = after
	}
}

// bootTime bounds what a guest does, on a machine that others use too.
const bootTime = 120 * time.Second

// startFor starts a VM with that much memory and waits for its agent.
func startFor(t *testing.T, d *daemon, vm, memory string) {
	t.Helper()
	for _, x := range [][2]string{{"memory", memory}, {"state", "start"}} {
		must(t, write(d.path(vm, x[0]), x[1]))
	}
	must(t, healthy(d, vm))
}

// works runs a command in a VM, and copies a file to it and back.
func (d *daemon) works(t *testing.T, vm string) {
	t.Helper()
	const line = "echo out; echo err >&2; exit 7"
	out, err := d.client("exec", vm, "--", "/bin/sh", "-c", line).Output()
	if status := exitStatus(err); string(out) != "out\n" || status != 7 {
		t.Errorf("exec in %s: %q, exit status %d", vm, out, status)
	}
	dir := t.TempDir()
	here, back := filepath.Join(dir, "here"), filepath.Join(dir, "back")
	b, err := io.ReadAll(noise(1, 1<<20))
	if err == nil {
		err = os.WriteFile(here, b, 0o644)
	}
	must(t, err)
	inside := vm + ":/tmp/there"
	for _, args := range [][]string{{"cp", here, inside}, {"cp", inside, back}} {
		if out, err := d.client(args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	want, err := host.FileSHA256(here)
	must(t, err)
	got, err := host.FileSHA256(back)
	there := d.inGuest(t, vm, "sha256sum /tmp/there")
	if err != nil || got != want || !strings.HasPrefix(there, want) {
		t.Errorf("copied to %s was %s, there it is %s, and back %s (%v)", vm, want, there, got, err)
	}
}

// realDaemon starts a daemon with one real VM, web, with user networking.
func realDaemon(t *testing.T) *daemon {
	d := testDaemon(t, "qemu")
	must(t, os.Mkdir(d.path("web"), 0o755))
	must(t, write(d.path("web", "net"), "user"))
	return d
}

// bootWeb starts the VM, waits until it is healthy, kills it, and returns the time to its health.
func bootWeb(t *testing.T, d *daemon) time.Duration {
	defer func() { must(t, write(d.path("web", "state"), "kill")) }()
	return took(func() {
		must(t, write(d.path("web", "state"), "start"))
		must(t, healthy(d, "web"))
	})
}

// makeVM makes a fake VM.
func (d *daemon) makeVM(t *testing.T, name, cmdline string) {
	if err := os.Mkdir(d.path(name), 0o755); err != nil {
		t.Error(err)
		return
	}
	if err := write(d.path(name, "config"), "vmm fake\ncmdline "+cmdline); err != nil {
		t.Error(err)
	}
}
