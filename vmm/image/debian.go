package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
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

// debianFresh is how long a Debian that was built is used again for another image.
const debianFresh = 24 * time.Hour

// debianTime bounds mmdebstrap; a mirror may send nothing for ever.
const debianTime = 30 * time.Minute

// debianPackages are what makes Debian's minimal variant a server that boots and can be worked on.
var debianPackages = []string{
	"linux-image-cloud-" + debianArch, "systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "iputils-ping", "netbase", "procps",
	"ca-certificates", "curl", "less", "nano",
}

const debianArch = "amd64"

// debianMerged are mmdebstrap's own hooks for a suite whose /bin is /usr/bin: without them such a suite brings usrmerge, and that all of Perl.
const debianMerged = "/usr/share/mmdebstrap/hooks/maybe-merged-usr"

// debianSetup are mmdebstrap's options: no initramfs is made, for banger has its own, and what is only to be read is left out, as is the list of
// hardware that no VM has. dpkg is told so by a file: by --dpkgopt it would also be mmdebstrap's to sift, which takes longer than to
// remove the little that was unpacked before dpkg was there.
var debianSetup = []string{
	"--variant=minbase",
	"--format=tar",
	`--setup-hook=mkdir -p "$1/etc/dpkg/dpkg.cfg.d"; cd "$1/etc/dpkg/dpkg.cfg.d"; echo force-unsafe-io >banger-build
printf 'path-exclude=%s/*\n' /usr/share/man /usr/share/locale /usr/share/doc /lib/udev/hwdb.d >banger; echo 'path-include=/usr/share/doc/*/copyright' >>banger`,
	`--customize-hook=rm -r "$1/etc/dpkg/dpkg.cfg.d/banger-build"; cd "$1/usr/share"; rm -rf man/* locale/*; find doc ! -type d ! -name copyright -delete`,
	// What mmdebstrap takes from the host: the guest gets its own.
	`--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"; : >"$1/etc/machine-id"; printf '127.0.0.1 localhost\n::1 localhost\n' >"$1/etc/hosts"`,
	// The machine belongs to who may open its console.
	`--customize-hook=chroot "$1" passwd -d root >/dev/null`,
	// What the packages' triggers have done need not be done again at the first boot, see ConditionNeedsUpdate in systemd.unit(5).
	`--customize-hook=touch "$1/etc/.updated" "$1/var/.updated"`,
	// A suite may lack one. What is for LVM, for a screen, or loads lists of packages that nobody asked for, is there to be enabled.
	`--customize-hook=chroot "$1" systemctl -q disable e2scrub_reap.service e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer getty@tty1.service || :`,
}

var suiteName = regexp.MustCompile(`^[a-z][a-z0-9-]{1,40}$`)

func checkSuite(arg string) error {
	if !suiteName.MatchString(arg) {
		return vmm.ErrInvalid
	}
	return nil
}

// planDebian puts a Debian together with mmdebstrap(1), from where the host's own apt gets its packages.
func planDebian(_ context.Context, j *job) (*plan, error) {
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return nil, errors.New("mmdebstrap is not installed; install it with `apt install mmdebstrap`")
	}
	if _, err := exec.LookPath("newuidmap"); err != nil && os.Getuid() != 0 {
		return nil, errors.New("without root mmdebstrap needs newuidmap; install it with `apt install uidmap`, and give this user a range in /etc/subuid and /etc/subgid")
	}
	mirror := debianMirror("/etc/apt")
	args := append([]string(nil), debianSetup...)
	if _, err := os.Stat(debianMerged); err == nil {
		args = append(args, "--hook-dir="+debianMerged)
	}
	args = append(args, "--architectures="+debianArch, "--include="+strings.Join(debianPackages, ","))
	if os.Getuid() == 0 {
		args = append(args, "--mode=root")
	} else {
		args = append(args, "--mode=unshare")
	}
	args = append(args, j.source.arg, "-")
	if mirror != "" {
		args = append(args, mirror)
	}
	key := digest([]byte("debian"), []byte(recipeRoot), []byte(strings.Join(args, "\x00")))
	j.set.expire(key, debianFresh)
	return &plan{key: key, make: func(ctx context.Context, dir string) (*manifest, error) {
		return j.makeDebian(ctx, dir, program, args)
	}}, nil
}

// expire removes what was built of that key, if it is older.
func (s *Set) expire(key string, age time.Duration) {
	dir := s.path(blobsName, builtName, blobKey(key))
	if m, err := readManifest(dir); err == nil && time.Since(m.Created) > age {
		if err := removeTree(dir); err != nil {
			s.o.Log.Error("cannot remove an old image", "err", err)
		}
	}
}

// debianDone is how much of a build is done when mmdebstrap has ended.
const debianDone = 0.8

// makeDebian runs mmdebstrap and builds the image of the tar that it makes.
func (j *job) makeDebian(ctx context.Context, dir, program string, args []string) (*manifest, error) {
	work, err := os.MkdirTemp(j.set.path(blobsName, builtName), ".debian-")
	if err != nil {
		return nil, err
	}
	defer removeTree(work)
	name := filepath.Join(work, "root.tar")
	if err := j.runDebian(ctx, work, name, program, args); err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, host.NewReader(ctx, f, nil))
	if err != nil {
		return nil, err
	}
	l := &layer{size: size, open: func() (io.ReadCloser, error) { return newPiece(f, 0, size, false), nil }}
	m, err := j.makeRoot(ctx, dir, []*layer{l}, nil, debianDone)
	if err == nil {
		m.Digest, m.Created = "sha256:"+hex.EncodeToString(h.Sum(nil)), time.Now().UTC()
	}
	return m, err
}

// runDebian runs mmdebstrap, whose tar goes to the file, to its end. It ends with the daemon, and so does all that it started: as root it
// is process 1 of a pid namespace of its own and has its mounts to itself; without root mmdebstrap does both itself.
func (j *job) runDebian(ctx context.Context, work, to, program string, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, debianTime)
	defer cancel()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	// mmdebstrap's own user of the namespace enters it without root.
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
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout = out
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TMPDIR="+tmp, "INITRD=No", "DEBIAN_FRONTEND=noninteractive")
	cmd.Dir = "/"
	// The thread that starts it lives as long as the build, so that the signal comes at the end of the daemon only.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // which makes the mounts private
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	said, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	last := j.followDebian(said)
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

// debianSteps are what mmdebstrap says on its way, and how far it is then.
var debianSteps = []struct {
	text string
	done float64
}{
	{"running apt-get update", 0.02}, {"downloading packages", 0.06}, {"extracting archives", 0.15}, {"installing essential", 0.25},
	{"installing remaining", 0.4}, {"cleaning package lists", 0.7}, {"creating tarball", 0.75},
}

// followDebian reads what mmdebstrap says to the end, and gives the last lines that are no mere progress.
func (j *job) followDebian(r io.Reader) string {
	var last []string
	for lines := bufio.NewScanner(io.LimitReader(r, 64<<20)); lines.Scan(); {
		line := lines.Text()
		for _, s := range debianSteps {
			if strings.HasPrefix(line, "I: ") && strings.Contains(line, s.text) {
				j.progress(s.done)
			}
		}
		if strings.HasPrefix(line, "E: ") || strings.HasPrefix(line, "dpkg: error") {
			if last = append(last, line); len(last) > 4 {
				last = last[1:]
			}
		}
	}
	_, _ = io.Copy(io.Discard, r) // of a line that was too long
	return host.OneLine([]byte(strings.Join(last, " ")))
}

// debianMirror finds the mirror of the host's own Debian in apt's sources (sources.list(5)), in both of their forms; empty if there is none.
func debianMirror(etc string) string {
	names, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	for _, name := range append([]string{filepath.Join(etc, "sources.list")}, names...) {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n") {
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
