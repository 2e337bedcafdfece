package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"banger/internal/host"
)

// kernelMeta is the package that depends on Debian's newest kernel for clouds.
const kernelMeta = "linux-image-cloud-amd64"

// memberLimit bounds a kernel's file, in bytes.
const memberLimit = 256 << 20

// fetchTime bounds the fetch of a package: a mirror may never answer.
const fetchTime = 30 * time.Minute

// ErrNoPackage is the error of a host whose apt has no kernel for clouds, or that has no apt.
var ErrNoPackage = errors.New("apt has no package " + kernelMeta)

// debTools are the programs that fetch a package and unpack it.
var debTools = []string{"apt-get", "apt-cache", "dpkg-deb"}

// KeptKernel returns the path of the newest kernel package in dir, empty if there is none.
func KeptKernel(dir string) string {
	names, _ := filepath.Glob(filepath.Join(dir, "linux-image-*.deb"))
	if len(names) == 0 {
		return ""
	}
	sort.Slice(names, func(i, j int) bool {
		return newer(filepath.Base(names[j]), filepath.Base(names[i]))
	})
	return names[len(names)-1]
}

// FetchKernel returns the path of the newest kernel package that apt knows. It is in dir, where
// apt-get puts it unless it is there, and alone. progress goes from 0 to 1.
func FetchKernel(ctx context.Context, dir string, progress func(float64)) (string, error) {
	for _, tool := range debTools {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("%w: there is no %s", ErrNoPackage, tool)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	out, err := host.Run(ctx, "", "apt-cache", "depends", "--important", kernelMeta)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	pkg := dependsOn(string(out))
	if err != nil || pkg == "" {
		return "", fmt.Errorf("%w; on Debian, `apt-get update` gets its lists", ErrNoPackage)
	}
	// It asks no network. It fails where the package is installed, and no list has it any more.
	out, err = host.Run(ctx, "", "apt-get", "download", "-q", "--print-uris", pkg)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("%w of now: %w; on Debian, `apt-get update` gets its lists",
			ErrNoPackage, err)
	}
	p, err := parseURI(string(out))
	if err != nil {
		return "", fmt.Errorf("apt-get download --print-uris %s: %w", pkg, err)
	}
	target := filepath.Join(dir, p.name)
	if sum, err := host.FileSHA256(target); err == nil && sum == p.sum {
		return target, nil
	}
	if err := p.fetch(ctx, pkg, dir, progress); err != nil {
		return "", err
	}
	others, _ := filepath.Glob(filepath.Join(dir, "linux-image-*.deb"))
	for _, name := range others {
		if name != target {
			_ = os.Remove(name)
		}
	}
	return target, nil
}

// debFile is a package's file, as apt describes it.
type debFile struct {
	name string
	size int64
	sum  string // SHA-256, hexadecimal
}

var uriLine = regexp.MustCompile(
	`(?m)^'[^']+' (linux-image-[A-Za-z0-9.+~%_-]+\.deb) ([0-9]+) SHA256:([0-9a-f]{64})$`)

// parseURI reads the output of apt-get --print-uris: 'URI' NAME SIZE SHA256:SUM.
func parseURI(out string) (debFile, error) {
	m := uriLine.FindStringSubmatch(out)
	if m == nil {
		return debFile{}, fmt.Errorf("no line of it names a package with its SHA256: %.200q", out)
	}
	size, err := strconv.ParseInt(m[2], 10, 64)
	return debFile{m[1], size, m[3]}, err
}

// fetchPace is the time between two looks at how much apt-get has fetched.
const fetchPace = 200 * time.Millisecond

// fetch puts the file into dir, whole and as apt describes it.
func (p debFile) fetch(ctx context.Context, pkg, dir string, progress func(float64)) error {
	if err := host.MakeDirs(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, ".kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	file := filepath.Join(tmp, p.name)
	ended, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(fetchPace)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if fi, err := os.Stat(file); err == nil && p.size > 0 {
					progress(min(1, float64(fi.Size())/float64(p.size)))
				}
			case <-ended:
				return
			}
		}
	}()
	// As root apt would fetch as its own user, which cannot write here, and warn of it.
	_, err = host.Run(ctx, tmp, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", pkg)
	close(ended)
	<-watched
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	if sum, err := host.FileSHA256(file); err != nil || sum != p.sum {
		return errors.Join(err, fmt.Errorf("apt-get download %s left another file than it described", pkg))
	}
	return os.Rename(file, filepath.Join(dir, p.name))
}

// dependsOn finds the kernel in the output of apt-cache depends.
func dependsOn(out string) string {
	for line := range strings.SplitSeq(out, "\n") {
		pkg, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && strings.HasPrefix(pkg, "linux-image-") {
			return pkg
		}
	}
	return ""
}

// Unpack unpacks a linux-image .deb into dir, and returns the kernel there. It runs dpkg-deb.
func Unpack(ctx context.Context, deb, dir string) (Installed, error) {
	if _, err := host.Run(ctx, "", "dpkg-deb", "-x", deb, dir); err != nil {
		return Installed{}, err
	}
	i, err := UnpackedIn(dir)
	if err != nil {
		return Installed{}, fmt.Errorf("kernel package %s: %w", filepath.Base(deb), err)
	}
	return i, nil
}
