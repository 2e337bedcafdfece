package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/vmm/image/boot"
)

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
		o.Package, err = boot.FetchKernel(ctx, o.CacheDir, o.Refresh, o.Log)
		if err != nil {
			return err
		}
	}
	deb, err := fileDigest(o.Package)
	if err != nil {
		return err
	}
	// The image's own small files, too, are inputs.
	layout, err := boot.Guest{}.Initramfs()
	if err != nil {
		return err
	}
	inputs := digest([]byte(recipe), []byte(builtinCmdline), layout, agent, busybox, []byte(deb))
	if m, err := readManifest(o.Dir); err == nil && m.Inputs == inputs {
		o.Log.Info("image is up to date", "dir", o.Dir, "digest", m.Digest)
		return nil
	}

	applets, err := boot.Applets(ctx, o.Busybox)
	if err != nil {
		return err
	}
	bzImage, modules, err := boot.ReadKernel(ctx, o.Package)
	if err != nil {
		return fmt.Errorf("kernel package %s: %w", filepath.Base(o.Package), err)
	}
	kernelName := "vmlinux"
	kernel, err := boot.PVHKernel(bzImage)
	if err != nil {
		o.Log.Warn("using the slower bzImage: the kernel has no entry for PVH", "reason", err)
		kernelName, kernel = "vmlinuz", bzImage
	}
	initrd, err := boot.Guest{Agent: agent, Busybox: busybox, Applets: applets, Modules: modules}.Initramfs()
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
