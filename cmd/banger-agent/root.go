package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

// rootSerial is the serial number of the disk with the root file system, which the host gives.
const rootSerial = "overlay"

// rootWait is how long the kernel may take to find the root disk of an image that has one.
const rootWait = 2 * time.Minute // a busy host that emulates needs half a minute

// newRoot is where the root disk is mounted at first.
const newRoot = "/sysroot"

// Where the agent lives for an init that is not itself: in the new root's /run.
const (
	ownDir     = "/run/banger"
	ownProgram = ownDir + "/banger-agent"
)

// agentUnit is the agent's service for systemd (systemd.service(5)). It starts before all others and
// ends with the last of systemd's signals, so that the host can ask throughout.
const agentUnit = `[Unit]
Description=banger's agent
Documentation=man:banger(5)
DefaultDependencies=no
IgnoreOnIsolate=yes

[Service]
ExecStart=` + ownProgram + `
Restart=always
RestartSec=1
OOMScoreAdjust=-900
StandardOutput=kmsg
StandardError=kmsg
`

// consoleUnit opens root's shell on the serial console. A user who may open `console` may do
// everything with the machine anyway.
const consoleUnit = `[Service]
ExecStart=
ExecStart=-/sbin/agetty -o '-p -f -- \\u' --autologin root --keep-baud 115200,57600,38400,9600 - $TERM
`

// enterRoot mounts the image's root disk and makes it the root. It returns the image's program, nil
// without such a disk. If the root has an init of its own, the process becomes that.
func enterRoot() (*guest.Program, error) {
	device, err := rootDisk()
	if device == "" {
		return nil, err
	}
	var program *guest.Program
	if b := readFile(guest.ProgramFile); len(b) > 0 {
		program = new(guest.Program)
		if err := json.Unmarshal(b, program); err != nil || len(program.Args) == 0 {
			return nil, fmt.Errorf("%s: %w", guest.ProgramFile, errors.Join(err, guest.ErrInvalid))
		}
	}
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return nil, err
	}
	unused := neverMounted(device)
	if err := unix.Mount(device, newRoot, "ext4", 0, ""); err != nil {
		return nil, fmt.Errorf("cannot mount the root disk %s: %w", device, err)
	}
	if err := growExt4(device, newRoot); err != nil {
		log.Print(err) // there is less room than there could be
	}
	var self []byte
	if program == nil {
		var err error
		if self, err = os.ReadFile("/proc/self/exe"); err != nil {
			return nil, err
		}
	}
	if err := switchRoot(); err != nil {
		_ = unix.Unmount(newRoot, 0) // it may be in its place already; its journal will do
		return nil, fmt.Errorf("cannot enter the root disk: %w", err)
	}
	err = makeStandardDirs("/")
	firstStart("/", unused)
	if program != nil {
		return program, errors.Join(err, prepareRoot())
	}
	if err != nil {
		log.Print(err) // its init may mount what it needs there
	}
	return nil, becomeInit(self)
}

// rootDisk gives the device of the root disk, empty if the image has none.
func rootDisk() (string, error) {
	for end := time.Now().Add(rootWait); ; time.Sleep(10 * time.Millisecond) {
		if name := findDisk("/sys", rootSerial); name != "" {
			return filepath.Join("/dev", name), nil
		}
		if _, err := os.Stat(guest.RootFile); err != nil {
			return "", nil
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("the kernel has not found the root disk within %v", rootWait)
		}
	}
}

// switchRoot makes newRoot the root, as switch_root(8) does. The kernel's file systems move with it,
// and the memory of the initramfs becomes free.
func switchRoot() error {
	kernels := []string{"dev", "proc", "sys"}
	for _, dir := range kernels { // all of them, before the first moves: the agent needs them
		to := filepath.Join(newRoot, dir)
		if err := os.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A link would lead back into the initramfs. runc refuses such an image, too.
		if info, err := os.Lstat(to); err != nil || !info.IsDir() {
			return fmt.Errorf("its /%s is no directory", dir)
		}
	}
	for _, dir := range kernels {
		err := unix.Mount("/"+dir, filepath.Join(newRoot, dir), "", unix.MS_MOVE, "")
		if err != nil {
			return fmt.Errorf("cannot move /%s: %w", dir, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return err
	}
	removeBelow("/", st.Dev)
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// removeBelow removes the content of a directory on its own device. A file that remains occupies
// memory and does no other harm.
func removeBelow(dir string, device uint64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || st.Dev != device {
			continue
		}
		if e.IsDir() {
			removeBelow(path, device)
			_ = os.Remove(path)
			continue
		}
		_ = os.Remove(path)
	}
}

// becomeInit leaves the agent behind as a service and runs the root's own init in its place.
func becomeInit(self []byte) error {
	if err := makeDir("/run", 0o755); err != nil {
		return fmt.Errorf("cannot make /run: %w", err)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if err := unix.Mount("tmpfs", "/run", "tmpfs", flags, "mode=0755"); err != nil {
		return fmt.Errorf("cannot mount /run: %w", err)
	}
	init := "/sbin/init"
	if _, err := os.Stat(init); err != nil {
		init = "/lib/systemd/systemd"
	}
	target, err := filepath.EvalSymlinks(init)
	if err != nil {
		return fmt.Errorf("the root disk has no init: %w", err)
	}
	systemd := filepath.Base(target) == "systemd"
	files := []struct {
		path string
		mode os.FileMode
		text []byte
	}{{ownProgram, 0o755, self}}
	const units = "/run/systemd/system"
	if systemd {
		files = append(files, struct {
			path string
			mode os.FileMode
			text []byte
		}{units + "/banger-agent.service", 0o644, []byte(agentUnit)}, struct {
			path string
			mode os.FileMode
			text []byte
		}{units + "/serial-getty@" + filepath.Base(console()) + ".service.d/banger.conf", 0o644, []byte(consoleUnit)})
	}
	for _, f := range files {
		if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(f.path, f.text, f.mode); err != nil {
			return err
		}
	}
	if systemd {
		wants := units + "/sysinit.target.wants"
		if err := os.Mkdir(wants, 0o755); err != nil {
			return err
		}
		if err := os.Symlink("../banger-agent.service", wants+"/banger-agent.service"); err != nil {
			return err
		}
	} else {
		cmd := exec.Command(ownProgram)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("cannot start the agent: %w", err)
		}
		defer func() { // this process remains the agent
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
	}
	env := []string{"PATH=" + defaultPath, "TERM=linux", "HOME=/"}
	return notBegun(init, unix.Exec(init, []string{init}, env))
}

// prepareRoot mounts what programs expect and an image of a container does not have.
func prepareRoot() error {
	if err := os.MkdirAll("/dev/shm", 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if err := unix.Mount("shm", "/dev/shm", "tmpfs", flags, "mode=1777"); err != nil {
		return fmt.Errorf("cannot mount /dev/shm: %w", err)
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
		"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		_ = os.Symlink(target, "/dev/"+name) // there already, perhaps
	}
	if err := mountQueues("/dev/mqueue"); err != nil {
		return err
	}
	return setSysctls("/proc/sys")
}

// runProgram starts what the image is there to run, on the console, and waits for its end.
func runProgram(p *guest.Program, r *reaper, began func(*child)) (unix.WaitStatus, error) {
	cmd, err := programCommand(p)
	if err != nil {
		return 0, err
	}
	tty, err := os.OpenFile(console(), os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return 0, err
	}
	defer tty.Close()
	// Its own user may open it again, as /dev/stdout.
	owner := cmd.SysProcAttr.Credential
	if err := tty.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
		return 0, err
	}
	cmd.Stdout, cmd.Stderr = tty, tty
	c, err := r.start(cmd)
	if err != nil {
		return 0, notBegun(cmd.Path, err)
	}
	began(c)
	<-c.done
	return c.status, nil
}

// programCommand says how a program of an OCI image is run (image-spec, config.md).
func programCommand(p *guest.Program) (*exec.Cmd, error) {
	user, err := findAccount(p.User)
	if err != nil {
		return nil, err
	}
	env := append([]string{"PATH=" + defaultPath, "HOME=" + user.home}, p.Env...)
	cmd := &exec.Cmd{Args: p.Args, Dir: p.Dir, Env: env}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if err := makeDir(cmd.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the directory that its program is to run in: %w", err)
	}
	if cmd.Path, err = lookPath(p.Args[0], cmd.Dir, lastValue(cmd.Env, "PATH")); err != nil {
		return nil, notFound(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
		Credential: &syscall.Credential{Uid: user.uid, Gid: user.gid, Groups: user.groups}}
	return cmd, nil
}

// stopSignal returns the signal by which an image's program is stopped. A build refuses an unknown
// one; images that an earlier version has built may have one, and get SIGTERM as they did then.
func stopSignal(text string) unix.Signal {
	n, err := guest.ParseSignal(text)
	if err != nil {
		return unix.SIGTERM
	}
	return unix.Signal(n)
}

// howEnded says how a process ended.
func howEnded(s unix.WaitStatus) string {
	if s.Signaled() {
		return "was ended by SIG" + guest.SignalName(int(s.Signal()))
	}
	return fmt.Sprintf("ended with status %d", s.ExitStatus())
}
