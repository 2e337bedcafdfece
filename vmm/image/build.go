package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"banger/internal/host"
)

// kernelMeta is the package that depends on Debian's newest kernel for clouds.
const kernelMeta = "linux-image-cloud-amd64"

// builtinCmdline makes a boot that shows itself on the serial line and loses
// no time: nothing in a guest of one user gains from mitigations, from an
// address layout that changes with every boot, or from the kernel's self-tests.
// The clock's watchdog would take a busy host for a bad TSC, and a guest without
// TSC ticks for ever: 5 % of a core instead of 0.8 % (TCG, idle).
const builtinCmdline = "console=ttyS0 panic=-1 mitigations=off nokaslr cryptomgr.notests random.trust_cpu=on tsc=nowatchdog"

// builtinMemory is the least memory in which the image boots and is of use, in bytes.
const builtinMemory = 128 << 20

// recipe is part of the inputs' digest: it changes whenever this package takes
// another kernel or other applets from the same files.
const recipe = "1"

// memberLimit bounds one file of a package.
const memberLimit = 256 << 20

// BuildOptions say what the built-in image is made from.
type BuildOptions struct {
	// Dir is the image's directory, which Build makes or replaces; its last element should be Builtin.
	Dir string
	// CacheDir keeps the kernel's package between builds.
	CacheDir string
	// Agent is the path of a static banger-agent, which becomes /init.
	Agent string
	// Busybox is the path of a static busybox; /bin/busybox if empty.
	Busybox string
	// Package is the path of a linux-image .deb. If empty, the one in CacheDir
	// is taken, and fetched with apt-get when there is none.
	Package string
	// Refresh fetches the kernel's package even if CacheDir has one.
	Refresh bool
	Log     *slog.Logger // slog.Default() if nil
}

// Build makes the built-in image, unless Dir holds one that was made from the
// same inputs. It runs apt-cache and apt-get (only to fetch the kernel), dpkg-deb
// and busybox. Dir is replaced in one step; on an error it is what it was.
func Build(ctx context.Context, o BuildOptions) error {
	if o.Busybox == "" {
		o.Busybox = "/bin/busybox"
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := build(ctx, o); err != nil {
		return fmt.Errorf("cannot make image %s: %w", filepath.Base(o.Dir), err)
	}
	return nil
}

func build(ctx context.Context, o BuildOptions) error {
	start := time.Now()
	agent, err := os.ReadFile(o.Agent)
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile(o.Busybox)
	if err != nil {
		return fmt.Errorf("%w (apt-get install busybox-static)", err)
	}
	if o.Package == "" {
		if o.Package, err = kernelPackage(ctx, o); err != nil {
			return err
		}
	}
	deb, err := fileDigest(o.Package)
	if err != nil {
		return err
	}
	// The image's own small files, too, are inputs.
	layout, err := packInitramfs(rootEntries(nil, nil, nil, nil))
	if err != nil {
		return err
	}
	inputs := digest([]byte(recipe), []byte(builtinCmdline), layout, agent, busybox, []byte(deb))
	if m, err := readManifest(o.Dir); err == nil && m.Inputs == inputs {
		o.Log.Info("image is up to date", "dir", o.Dir, "digest", m.Digest)
		return nil
	}

	applets, err := busyboxApplets(ctx, o.Busybox)
	if err != nil {
		return err
	}
	bzImage, modules, err := readKernelPackage(ctx, o.Package)
	if err != nil {
		return fmt.Errorf("kernel package %s: %w", filepath.Base(o.Package), err)
	}
	kernelName, kernel := "vmlinux", []byte(nil)
	if kernel, err = extractVmlinux(bzImage); err != nil || !hasPVHNote(kernel) {
		o.Log.Warn("kernel cannot be entered through PVH, the slower bzImage is used", "reason", err)
		kernelName, kernel = "vmlinuz", bzImage
	}
	initrd, err := packInitramfs(rootEntries(agent, busybox, applets, modules))
	if err != nil {
		return err
	}
	m := &manifest{
		Kernel:  kernelName,
		Initrd:  "initramfs.cpio",
		Cmdline: builtinCmdline,
		Memory:  builtinMemory,
		Digest:  digest(kernel, initrd, []byte(builtinCmdline)),
		Size:    int64(len(kernel) + len(initrd)),
		Created: time.Now().UTC(),
		Source:  "built in: " + strings.TrimSuffix(filepath.Base(o.Package), ".deb") + ", busybox, banger-agent",
		Inputs:  inputs,
	}
	if err := writeImage(o.Dir, m, map[string][]byte{m.Kernel: kernel, m.Initrd: initrd}); err != nil {
		return err
	}
	o.Log.Info("image is made", "dir", o.Dir, "digest", m.Digest, "kernel_bytes", len(kernel),
		"initrd_bytes", len(initrd), "seconds", time.Since(start).Seconds())
	return nil
}

// digest is over the length and the bytes of each part, so that no two lists of parts run together.
func digest(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d\n", len(p))
		h.Write(p)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

func fileDigest(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// kernelPackage gives the path of the newest kernel package in the cache, fetching it if need be.
func kernelPackage(ctx context.Context, o BuildOptions) (string, error) {
	if o.CacheDir == "" {
		return "", errors.New("no cache directory for the kernel's package")
	}
	dir := filepath.Join(o.CacheDir, "kernel")
	if !o.Refresh {
		if name := onlyPackage(dir); name != "" {
			return name, nil
		}
	}
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return "", err
	}
	out, err := host.Run(ctx, "", "apt-cache", "depends", "--important", kernelMeta)
	if err != nil {
		return "", fmt.Errorf("%w (apt-get update)", err)
	}
	pkg := dependsOn(string(out))
	if pkg == "" {
		return "", fmt.Errorf("apt knows no %s (apt-get update)", kernelMeta)
	}
	o.Log.Info("kernel is fetched", "package", pkg)
	err = host.ReplaceDir(dir, func(tmp string) error {
		// As root apt would fetch as its own user, who cannot write here, and warn of it.
		if _, err := host.Run(ctx, tmp, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", pkg); err != nil {
			return err
		}
		if onlyPackage(tmp) == "" {
			return fmt.Errorf("apt-get download %s left no package", pkg)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return onlyPackage(dir), nil
}

// onlyPackage is the path of the .deb in dir, empty if there is none.
func onlyPackage(dir string) string {
	names, _ := filepath.Glob(filepath.Join(dir, "linux-image-*.deb"))
	if len(names) == 0 {
		return ""
	}
	sort.Strings(names)
	return names[len(names)-1]
}

// dependsOn finds the kernel in the output of apt-cache depends.
func dependsOn(out string) string {
	for _, line := range strings.Split(out, "\n") {
		if pkg, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(pkg, "linux-image-") {
			return pkg
		}
	}
	return ""
}

// busyboxApplets are the names under which busybox can be called, without its own.
func busyboxApplets(ctx context.Context, busybox string) ([]string, error) {
	out, err := host.Run(ctx, "", busybox, "--list")
	if err != nil {
		return nil, err
	}
	return appletNames(string(out)), nil
}

func appletNames(out string) []string {
	seen := map[string]bool{"busybox": true}
	var names []string
	for _, name := range strings.Fields(out) {
		if !seen[name] && !strings.Contains(name, "/") {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}

// readKernelPackage takes the kernel and the modules of moduleNames out of a linux-image .deb.
func readKernelPackage(ctx context.Context, deb string) (bzImage []byte, modules map[string][]byte, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	bzImage, modules, err = readKernelTar(out)
	if err == nil {
		// dpkg-deb ends well only when all was read.
		_, err = io.Copy(io.Discard, out)
	}
	if err != nil {
		cancel()
	}
	if werr := cmd.Wait(); werr != nil && (err == nil || stderr.Len() > 0) {
		err = fmt.Errorf("dpkg-deb: %w: %s", werr, host.OneLine(stderr.Bytes()))
	}
	return bzImage, modules, err
}

// readKernelTar reads the package's files; both results are complete or err says what is missing.
func readKernelTar(r io.Reader) (bzImage []byte, modules map[string][]byte, err error) {
	wanted := make(map[string]bool)
	for _, m := range moduleNames {
		wanted[m+".ko"] = true
	}
	modules = make(map[string][]byte)
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		dir, base := path.Split(path.Clean("/" + h.Name))
		isKernel := dir == "/boot/" && strings.HasPrefix(base, "vmlinuz-")
		isModule := wanted[base] && (strings.HasPrefix(dir, "/lib/modules/") || strings.HasPrefix(dir, "/usr/lib/modules/"))
		if h.Typeflag != tar.TypeReg || !isKernel && !isModule {
			continue
		}
		if h.Size > memberLimit {
			return nil, nil, fmt.Errorf("%s is longer than %d bytes", h.Name, memberLimit)
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return nil, nil, err
		}
		if isKernel {
			bzImage = b
		} else {
			modules[strings.TrimSuffix(base, ".ko")] = b
		}
	}
	if bzImage == nil {
		return nil, nil, errors.New("no /boot/vmlinuz in it")
	}
	for _, m := range moduleNames {
		if modules[m] == nil {
			return nil, nil, fmt.Errorf("no module %s.ko in it", m)
		}
	}
	return bzImage, modules, nil
}
