package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// outside returns a command prefix for the network namespace of the caller. The suite's own
// namespace does not reach Debian's packages.
func outside() []string {
	return []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", os.Getppid())}
}

// debianIndex prints the signed index of Debian's packages, from the mirror that the host's apt
// uses.
const debianIndex = `
mirror=$(grep -rhsoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list* | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}; echo "$mirror"
to=$(mktemp -d); trap 'rm -r "$to"' EXIT
/usr/lib/apt/apt-helper -q -o APT::Sandbox::User=root download-file \
	"${mirror% }/dists/bookworm/InRelease" "$to/index" >&2 && cat "$to/index"`

// debianTar returns a tar of the directory `built` of a daemon that has built debian:bookworm. A
// change of Debian's index or of vmm/image makes it anew.
var debianTar = sync.OnceValues(func() (string, error) {
	args := append(outside(), "sh", "-c", debianIndex)
	cmd := exec.Command(args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	index, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot read Debian's index: %w: %s", err, stderr.Bytes())
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

// buildDebian starts a daemon that builds a Debian.
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
	blobs := filepath.Join(d.state, "images", ".blobs")
	out, err := exec.Command("tar", "-C", blobs, "-Scf", path, "built").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// debianUnits starts two units that print on the console when they stop, and one that listens.
// systemd must stop the second unit first.
const debianUnits = `set -e
for unit in early late; do
	[ $unit = early ] && after= || after=After=early.service
	printf '%s\n' [Unit] $after [Service] Type=oneshot RemainAfterExit=yes ExecStart=/bin/true \
		"ExecStop=/bin/sh -c 'echo stopping $unit >/dev/console'" >/etc/systemd/system/$unit.service
done
systemctl daemon-reload
systemctl start early late
systemd-run -q --unit=page --socket-property=ListenStream=7000 /bin/cat
`

// TestDebian boots the Debian of debian:bookworm, works in it, and stops it by its own init.
func TestDebian(t *testing.T) {
	t.Parallel()
	needRealVMs(t)
	if os.Geteuid() != 0 {
		t.Skip("run as root")
	}
	made, err := debianTar()
	must(t, err)
	d, err := newDaemon(t.TempDir())
	must(t, err)
	blobs := filepath.Join(d.state, "images", ".blobs")
	must(t, errors.Join(openUp(d.state), d.addImage("qemu"), os.Mkdir(blobs, 0o755)))
	t.Cleanup(d.cleanup)
	if out, err := exec.Command("tar", "-C", blobs, "-xf", made).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, d.start())
	d.build(t, "debian", "debian:bookworm") // from the built layers: no packages are reached here
	must(t, os.Mkdir(d.path("deb"), 0o755))
	const key = "ssh-ed25519 " +
		"AAAAC3NzaC1lZDI1NTE5AAAAIHb1mPMpb5mBNqSQJ3dLKKrBY0aw0N7TyZyXzG3vN2pS proof"
	// An emulated guest on a busy host needs more than the default of 10 s to stop.
	for _, w := range [][2]string{
		{"config", "image debian\ndisk 64M\nstop_timeout 40"},
		{"authorized_keys", key}, {"state", "start"},
	} {
		if err := write(d.path("deb", w[0]), w[1]); err != nil {
			t.Fatalf("%v: %s", err, readFile(d.path("deb", "error")))
		}
	}
	d.await(t, "deb", "healthy")
	console := d.path("deb", "console")
	waitUntil(t, "a shell on the console", func() bool {
		return strings.Contains(readFile(console), "root@")
	})
	got := d.inGuest(t, "deb", "cat /proc/1/comm; findmnt -no FSTYPE /; findmnt -no FSTYPE /work; "+
		"cat /root/.ssh/authorized_keys; cat /etc/dpkg/dpkg.cfg.d/*")
	if !strings.HasPrefix(got, "systemd\next4\next4\n") || !strings.Contains(got, key) ||
		strings.Contains(got, "unsafe") {
		t.Errorf("in the guest: %s", got)
	}
	names := d.inGuest(t, "deb", "getent ahosts localhost | wc -l; getent ahostsv4 deb | head -n 1; "+
		"hostname -f; cat /etc/hostname; ls -A / | grep -c banger; wc -c </etc/machine-id")
	want := regexp.MustCompile(`\A[1-9]\d*\n` + regexp.QuoteMeta(d.read(t, "vms/deb/address")) +
		` +STREAM deb\ndeb\ndeb\n0\n33\n\z`)
	if !want.MatchString(names) {
		t.Errorf("names in the guest: %q, want %s", names, want)
	}
	d.works(t, "deb")
	d.inGuest(t, "deb", debianUnits)
	d.await(t, "deb", "tcp/7000")
	ports := d.read(t, "vms/deb/ports")
	if !strings.Contains(ports, "7000") || !strings.Contains(ports, "systemd") {
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
	// Its own init stopped all units in order and unmounted all file systems.
	d.stopTidily(t, "deb", "stopping late", "stopping early", "Reached target")
}
