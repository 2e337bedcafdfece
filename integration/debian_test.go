package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// outside is the network namespace that the tests were started in: Debian's packages are not reached from the suite's own.
func outside() []string {
	return []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", os.Getppid())}
}

// debianIndex prints the signed index of the packages that a Debian is made from here, at the mirror, and as, the host's apt gets them.
const debianIndex = `mirror=$(grep -rhsoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}; echo "$mirror"
to=$(mktemp -d); trap 'rm -r "$to"' EXIT
/usr/lib/apt/apt-helper -q -o APT::Sandbox::User=root download-file "${mirror% }/dists/bookworm/InRelease" "$to/index" >&2 && cat "$to/index"`

// debianTar gives a tar of the directory `built` of a daemon that has built debian:bookworm. It is made once for each index of packages and each state of
// the package that builds.
var debianTar = sync.OnceValues(func() (string, error) {
	args := append(outside(), "sh", "-c", debianIndex)
	cmd := exec.Command(args[0], args[1:]...)
	var said bytes.Buffer
	cmd.Stderr = &said
	index, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot read the index of Debian's packages: %w: %s", err, said.Bytes())
	}
	sources, err := filepath.Glob(filepath.Join(module, "vmm", "image", "*.go"))
	if err != nil {
		return "", err
	}
	inputs := string(index)
	for _, name := range sources {
		inputs += readFile(name)
	}
	return kept("debian", inputs, buildDebian)
})

// buildDebian has a daemon of its own build a Debian.
func buildDebian(path string) (err error) {
	dir, err := os.MkdirTemp("", "banger-it-debian-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d, err := newDaemon(dir)
	if err != nil {
		return err
	}
	defer d.cleanup()
	if err := d.addImage("qemu"); err != nil {
		return err
	}
	d.wrap = outside()
	if err := d.start(); err != nil {
		return err
	}
	image := filepath.Join(d.mount, "images", "debian")
	if err := os.Mkdir(image, 0o755); err != nil {
		return err
	}
	if err := write(filepath.Join(image, "source"), "debian:bookworm"); err != nil {
		return err
	}
	if _, err := os.ReadFile(filepath.Join(image, "wait", "ready")); err != nil {
		return fmt.Errorf("%w: %s", err, readFile(filepath.Join(image, "status")))
	}
	if err := d.signal(syscall.SIGTERM); err != nil {
		return err
	}
	out, err := exec.Command("tar", "-C", filepath.Join(d.state, "images", ".blobs"), "-Scf", path, "built").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// debianUnits starts two units that say on the console when they are stopped, of which systemd is to stop the second first, and one that listens.
const debianUnits = `set -e
for unit in early late; do
	[ $unit = early ] && after= || after=After=early.service
	printf '%s\n' [Unit] $after [Service] Type=oneshot RemainAfterExit=yes ExecStart=/bin/true "ExecStop=/bin/sh -c 'echo stopping $unit >/dev/console'" >/etc/systemd/system/$unit.service
done
systemctl daemon-reload
systemctl start early late
systemd-run -q --unit=page --socket-property=ListenStream=7000 /bin/cat
`

// TestDebian boots the Debian that debian:bookworm makes, works in it, and has its own init end it.
func TestDebian(t *testing.T) {
	t.Parallel()
	if ok, cure := realVMs(); !ok {
		t.Skip(cure)
	}
	if os.Geteuid() != 0 {
		t.Skip("run as root")
	}
	made, err := debianTar()
	if err != nil {
		t.Fatal(err)
	}
	d, err := newDaemon(t.TempDir())
	if err == nil {
		err = errors.Join(openUp(d.state), d.addImage("qemu"), os.Mkdir(filepath.Join(d.state, "images", ".blobs"), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.cleanup)
	if out, err := exec.Command("tar", "-C", filepath.Join(d.state, "images", ".blobs"), "-xf", made).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.build(t, "debian", "debian:bookworm") // of what is built already, as there are no packages here
	if err := os.Mkdir(d.path("deb"), 0o755); err != nil {
		t.Fatal(err)
	}
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHb1mPMpb5mBNqSQJ3dLKKrBY0aw0N7TyZyXzG3vN2pS proof"
	// It stops well within the default of 10 s, but not when others have all of the host while it is emulated.
	for _, w := range [][2]string{{"config", "image debian\ndisk 64M\nstop_timeout 40"}, {"authorized_keys", key}, {"state", "start"}} {
		if err := write(d.path("deb", w[0]), w[1]); err != nil {
			t.Fatalf("%v: %s", err, readFile(d.path("deb", "error")))
		}
	}
	d.await(t, "deb", "healthy")
	console := d.path("deb", "console")
	waitUntil(t, "a shell on the console", func() bool { return strings.Contains(readFile(console), "root@") })
	if got := d.inGuest(t, "deb", "cat /proc/1/comm; findmnt -no FSTYPE /; findmnt -no FSTYPE /work; cat /root/.ssh/authorized_keys; cat /etc/dpkg/dpkg.cfg.d/*"); !strings.HasPrefix(got, "systemd\next4\next4\n") ||
		!strings.Contains(got, key) || strings.Contains(got, "unsafe") {
		t.Errorf("in the guest: %s", got)
	}
	d.works(t, "deb")
	d.inGuest(t, "deb", debianUnits)
	d.await(t, "deb", "tcp/7000")
	if ports := d.read(t, "vms/deb/ports"); !strings.Contains(ports, "7000") || !strings.Contains(ports, "systemd") {
		t.Errorf("ports: %s", ports)
	}
	if err := os.Mkdir(d.path("deb", "snapshots", "one"), 0o755); err != nil {
		t.Fatalf("%v: %s", err, readFile(d.path("deb", "error")))
	}
	if got := d.read(t, "vms/deb/snapshots/one/frozen"); got != "1" {
		t.Errorf("frozen: %s", got)
	}
	if err := os.Remove(d.path("deb", "snapshots", "one")); err != nil {
		t.Error(err)
	}
	// Its own init has ended it, in order: what was to come last came last, and all was unmounted.
	d.stopTidily(t, "deb", "stopping late", "stopping early", "Reached target")
}

// works has a command run in a VM, and a file copied to it and back.
func (d *daemon) works(t *testing.T, vm string) {
	t.Helper()
	out, err := d.client("exec", vm, "--", "/bin/sh", "-c", "echo said; echo not said >&2; exit 7").Output()
	if status := exitStatus(err); string(out) != "said\n" || status != 7 {
		t.Errorf("exec in %s: %q, exit status %d", vm, out, status)
	}
	dir := t.TempDir()
	here, back := filepath.Join(dir, "here"), filepath.Join(dir, "back")
	b, err := io.ReadAll(noise(1, 1<<20))
	if err == nil {
		err = os.WriteFile(here, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"cp", here, vm + ":/tmp/there"}, {"cp", vm + ":/tmp/there", back}} {
		if out, err := d.client(args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	want, err := fileSum(here)
	if err != nil {
		t.Fatal(err)
	}
	got, err := fileSum(back)
	if there := d.inGuest(t, vm, "sha256sum /tmp/there"); err != nil || got != want || !strings.HasPrefix(there, want) {
		t.Errorf("copied to %s was %s, there it is %s, and back %s (%v)", vm, want, there, got, err)
	}
}
