package rootfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/vmm"
)

// debianTime bounds mmdebstrap: a mirror may never answer.
const debianTime = 30 * time.Minute

// debianPackages turn Debian's minimal variant into a server that boots and is of use.
var debianPackages = []string{
	"linux-image-cloud-" + debianArch, "systemd", "systemd-sysv", "dbus", "udev", "kmod",
	"iproute2", "iputils-ping", "netbase", "procps", "ca-certificates", "curl", "less", "nano",
}

const debianArch = "amd64"

// debianMerged has mmdebstrap's own hooks for a suite whose /bin is /usr/bin. Without them such a
// suite installs usrmerge, which depends on Perl.
const debianMerged = "/usr/share/mmdebstrap/hooks/maybe-merged-usr"

// debianSetup holds options of mmdebstrap. They leave out manuals, translations and the list of
// hardware that no VM has. A file excludes these for dpkg: with --dpkgopt mmdebstrap would filter
// its own unpacking too, which is slower than removing the little that it unpacks.
var debianSetup = []string{
	"--variant=minbase",
	"--format=tar",
	`--setup-hook=mkdir -p "$1/etc/dpkg/dpkg.cfg.d"; cd "$1/etc/dpkg/dpkg.cfg.d"; ` +
		`echo force-unsafe-io >banger-build
printf 'path-exclude=%s/*\n' /usr/share/man /usr/share/locale /usr/share/doc ` +
		`/lib/udev/hwdb.d >banger; ` +
		`echo 'path-include=/usr/share/doc/*/copyright' >>banger`,
	`--customize-hook=rm -r "$1/etc/dpkg/dpkg.cfg.d/banger-build"; cd "$1/usr/share"; ` +
		`rm -rf man/* locale/*; find doc ! -type d ! -name copyright -delete`,
	// mmdebstrap copies these from the host; the guest gets its own.
	`--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"; : >"$1/etc/machine-id"; ` +
		`printf '127.0.0.1 localhost\n::1 localhost\n' >"$1/etc/hosts"`,
	// The file permissions of the console decide who becomes root in the guest.
	`--customize-hook=chroot "$1" passwd -d root >/dev/null`,
	// The first boot need not repeat the packages' triggers, see ConditionNeedsUpdate in
	// systemd.unit(5).
	`--customize-hook=touch "$1/etc/.updated" "$1/var/.updated"`,
	// A VM has no LVM and no screen, and should load no lists of packages by itself. A suite may
	// lack a unit. Guests may enable them again.
	`--customize-hook=chroot "$1" systemctl -q disable e2scrub_reap.service e2scrub_all.timer ` +
		`apt-daily.timer apt-daily-upgrade.timer getty@tty1.service || :`,
}

var suiteName = regexp.MustCompile(`^[a-z][a-z0-9-]{1,40}$`)

// CheckSuite returns vmm.ErrInvalid for a text that cannot name a suite of Debian.
func CheckSuite(suite string) error {
	if !suiteName.MatchString(suite) {
		return vmm.ErrInvalid
	}
	return nil
}

// Debian makes a tar of a Debian with mmdebstrap(1). The packages are from the mirror of the
// host's own apt.
type Debian struct {
	program string
	args    []string
}

// NewDebian returns the Debian of a suite. It fails if the host lacks a program.
func NewDebian(suite string) (*Debian, error) {
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return nil, errors.New("mmdebstrap is not installed; install it with `apt install mmdebstrap`")
	}
	mode := "--mode=root"
	if os.Getuid() != 0 {
		mode = "--mode=unshare"
		if _, err := exec.LookPath("newuidmap"); err != nil {
			return nil, errors.New("without root mmdebstrap needs newuidmap; install it with " +
				"`apt install uidmap`, and give this user a range in /etc/subuid and /etc/subgid")
		}
	}
	args := append([]string(nil), debianSetup...)
	if _, err := os.Stat(debianMerged); err == nil {
		args = append(args, "--hook-dir="+debianMerged)
	}
	args = append(args, "--architectures="+debianArch,
		"--include="+strings.Join(debianPackages, ","), mode, suite, "-")
	if mirror := debianMirror("/etc/apt"); mirror != "" {
		args = append(args, mirror)
	}
	return &Debian{program, args}, nil
}

// Recipe changes with everything but the packages that decides the result.
func (d *Debian) Recipe() []byte { return []byte(strings.Join(d.args, "\x00")) }

// Run writes the tar to a new file in the directory work. mmdebstrap and its processes end with
// this process: as root it gets a pid namespace and private mounts, without root it makes them
// itself. progress goes from 0 to 1.
func (d *Debian) Run(ctx context.Context, work, name string, progress func(float64)) error {
	ctx, cancel := context.WithTimeout(ctx, debianTime)
	defer cancel()
	out, err := os.OpenFile(filepath.Join(work, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	// Without root mmdebstrap enters it as another user of its namespace.
	if err := os.Chmod(work, 0o711); err != nil {
		return err
	}
	tmp := filepath.Join(work, "tmp")
	if err := os.Mkdir(tmp, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o1777); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, d.program, d.args...)
	cmd.Stdout = out
	// No initramfs: banger has its own.
	cmd.Env = append(os.Environ(),
		"LC_ALL=C", "TMPDIR="+tmp, "INITRD=No", "DEBIAN_FRONTEND=noninteractive")
	cmd.Dir = "/"
	// The signal follows the end of the starting thread, which lives as long as the build.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // makes the mounts private
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	messages, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := host.StartExpendable(cmd); err != nil {
		return err
	}
	last := followDebian(messages, progress)
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("mmdebstrap did not end within %v", debianTime)
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("mmdebstrap: %w: %s", err, last)
	}
	return out.Close()
}

// debianSteps are messages of mmdebstrap, with how much is done by then. Writing the tar is the
// rest.
var debianSteps = []struct {
	text string
	done float64
}{
	{"running apt-get update", 0.02}, {"downloading packages", 0.06}, {"extracting archives", 0.15},
	{"installing essential", 0.25}, {"installing remaining", 0.4}, {"cleaning package lists", 0.7},
	{"creating tarball", 0.75},
}

// followDebian reads the messages of mmdebstrap to their end and returns the last errors.
func followDebian(r io.Reader, progress func(float64)) string {
	var last []string
	for lines := bufio.NewScanner(io.LimitReader(r, 64<<20)); lines.Scan(); {
		line := lines.Text()
		for _, s := range debianSteps {
			if strings.HasPrefix(line, "I: ") && strings.Contains(line, s.text) {
				progress(s.done)
			}
		}
		if strings.HasPrefix(line, "E: ") || strings.HasPrefix(line, "dpkg: error") {
			if last = append(last, line); len(last) > 4 {
				last = last[1:]
			}
		}
	}
	_, _ = io.Copy(io.Discard, r) // after a line that was too long
	return host.OneLine([]byte(strings.Join(last, " ")))
}

// debianMirror returns the mirror in apt's sources (sources.list(5)), in either of their forms. It
// is empty if the host is no Debian.
func debianMirror(etc string) string {
	names, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	for _, name := range append([]string{filepath.Join(etc, "sources.list")}, names...) {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "deb" && words[0] != "URIs:" {
				continue
			}
			for _, w := range words[1:] {
				if mirrorURL.MatchString(w) {
					return w
				}
			}
		}
	}
	return ""
}

var mirrorURL = regexp.MustCompile(`^https?://[^\s]+/debian/?$`)
