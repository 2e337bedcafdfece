package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// daemons counts those made, so that each has a bridge and a subnet of its own.
var daemons atomic.Int32

// daemon is a bangerd in its own process, with a mount and a state directory of its own.
type daemon struct {
	mount, state, config, log string
	bridge                    string
	env                       []string
	wrap                      []string // what runs it, nothing for itself
	cmd                       *exec.Cmd
	ended                     chan struct{} // closed when cmd was waited for
}

// newDaemon prepares directories below dir and a configuration with these lines. It starts nothing.
func newDaemon(dir string, settings ...string) (*daemon, error) {
	d := &daemon{
		mount:  filepath.Join(dir, "mnt"),
		state:  filepath.Join(dir, "state"),
		config: filepath.Join(dir, "config.toml"),
		log:    filepath.Join(dir, "bangerd.log"),
	}
	n := daemons.Add(1)
	d.bridge = fmt.Sprintf("bt%d", n)
	text := fmt.Sprintf("bridge = %q\nsubnet = \"172.30.%d.0/24\"\n", d.bridge, n)
	text += strings.Join(settings, "\n")
	if err := os.WriteFile(d.config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return d, os.MkdirAll(d.state, 0o711)
}

// addImage installs the built-in image, for the fake driver an empty one: its machines boot
// nothing.
func (d *daemon) addImage(vmm string) error {
	images := filepath.Join(d.state, "images")
	if vmm == "qemu" {
		if err := os.MkdirAll(images, 0o755); err != nil {
			return err
		}
		if out, err := exec.Command("cp", "-r", builtin(), images).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	dir := filepath.Join(images, "builtin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"vmlinux", "initrd"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			return err
		}
	}
	manifest := `{"kernel":"vmlinux","initrd":"initrd","memory":134217728,` +
		`"digest":"sha256:` + strings.Repeat("0", 64) + `","created":"2026-01-01T00:00:00Z"}`
	return os.WriteFile(filepath.Join(dir, "image.json"), []byte(manifest+"\n"), 0o644)
}

// openUp lets VMMs and ordinary users search dir and its parents below the temporary directory.
func openUp(dir string) error {
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// start runs bangerd and returns when its tree is mounted.
func (d *daemon) start(flags ...string) error {
	if d.cmd != nil {
		return errors.New("bangerd is already started")
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	argv := slices.Concat(d.wrap, []string{filepath.Join(bin, "bangerd"), "--mount", d.mount,
		"--state-dir", d.state, "--config", d.config, "--log-level", "debug",
		"--enable-fake-vmm"}, flags)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr, cmd.Env = log, append(os.Environ(), d.env...)
	if *profiles != "" {
		_ = os.Remove(d.profileSocket()) // of a daemon that was killed
		cmd.Env = append(cmd.Env, profileEnv+"="+d.profileSocket())
	}
	// No program that the daemon starts may inherit this descriptor. VMMs use lower numbers.
	cmd.ExtraFiles = append(make([]*os.File, 60), log)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(ended)
	}()
	d.cmd, d.ended = cmd, ended
	for deadline := time.Now().Add(30 * time.Second); ; {
		// A dead mount of an earlier daemon fails here, a plain directory has no version.
		syscall.ForkLock.RLock() // no fork inherits the file: the daemon may need this process
		_, err := os.ReadFile(filepath.Join(d.mount, "version"))
		syscall.ForkLock.RUnlock()
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			d.cmd = nil
			text, _ := os.ReadFile(d.log)
			return fmt.Errorf("bangerd ended before it served: %v\n%s", cmd.ProcessState, text)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("bangerd does not serve %s after 30 s", d.mount)
		}
	}
}

// signal sends sig and waits for the end of the daemon.
func (d *daemon) signal(sig syscall.Signal) error {
	if d.cmd == nil {
		return errors.New("bangerd is not started")
	}
	cmd, ended := d.cmd, d.ended
	if err := cmd.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case <-ended:
		d.cmd = nil
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Signal(syscall.SIGQUIT) // what hangs is in its log then
		select {
		case <-ended:
			d.cmd = nil
		case <-time.After(5 * time.Second):
		}
		log, _ := os.ReadFile(d.log)
		return fmt.Errorf("bangerd does not end within 30 s of %v; the end of its log:\n%s",
			sig, log[max(0, len(log)-64<<10):])
	}
	if sig == syscall.SIGTERM && cmd.ProcessState.ExitCode() != 0 {
		return fmt.Errorf("bangerd ended with %v", cmd.ProcessState)
	}
	return nil
}

// cleanup ends the daemon and all machines of its state directory. It removes the bridge and the
// mount.
func (d *daemon) cleanup() {
	if d.cmd != nil && d.signal(syscall.SIGTERM) != nil {
		_ = d.signal(syscall.SIGKILL)
	}
	for _, pid := range append(d.machines(), d.others()...) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	d.removeGroups()
	// A daemon leaves the bridge of VMs that run on; one without a bridge has nothing to remove.
	_ = exec.Command("ip", "link", "delete", d.bridge).Run()
	_ = syscall.Unmount(d.mount, syscall.MNT_DETACH)
	_ = syscall.Unmount(d.state, syscall.MNT_DETACH) // where it is a disk of its own
}

// others returns the pids that a script left in *.pid beside the mount.
func (d *daemon) others() []int {
	var pids []int
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(d.mount), "*.pid"))
	for _, f := range files {
		text, _ := os.ReadFile(f)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// machines returns the pids of the QEMUs of the daemon's VMs.
func (d *daemon) machines() []int {
	var pids []int
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		line, _ := os.ReadFile(p)
		if !bytes.Contains(line, []byte("qemu-system")) {
			continue
		}
		if bytes.Contains(line, []byte(filepath.Dir(d.mount)+"/")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// testDaemon starts a daemon with these lines in its configuration. The end of the test removes the
// daemon and all that it made.
func testDaemon(t testing.TB, vmm string, settings ...string) *daemon {
	t.Helper()
	d, err := newDaemon(t.TempDir(), settings...)
	must(t, err)
	must(t, openUp(d.state))
	must(t, d.addImage(vmm))
	t.Cleanup(d.cleanup)
	must(t, d.start())
	return d
}

func (d *daemon) path(parts ...string) string {
	return filepath.Join(append([]string{d.mount, "vms"}, parts...)...)
}

// needRealVMs skips a test where no real VM can run.
func needRealVMs(t *testing.T) {
	t.Helper()
	if ok, cure := realVMs(); !ok {
		t.Skip(cure)
	}
}

// builtin is where `make image` leaves the built-in image.
func builtin() string { return filepath.Join(module, ".cache", "image", "builtin") }

// realVMs reports whether real VMs can be run here, else the cure.
func realVMs() (bool, string) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return false, "apt install qemu-system-x86"
	}
	if _, err := os.Stat(builtin()); err != nil {
		return false, "make image"
	}
	return true, ""
}
