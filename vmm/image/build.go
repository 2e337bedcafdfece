package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/host"
	"banger/vmm/image/boot"
)

// builtinCmdline shows the boot on the serial line and makes it fast. A guest of one user gains
// nothing from mitigations, a random address layout, or the kernel's self-tests. On a busy host the
// clock's watchdog would reject the TSC, and a guest without TSC ticks all the time: an idle one
// used 5 % of a core instead of 0.8 % (TCG).
const builtinCmdline = "console=ttyS0 panic=-1 mitigations=off nokaslr cryptomgr.notests " +
	"random.trust_cpu=on tsc=nowatchdog"

// builtinMemory is the least memory in which the built-in image is of use, in bytes.
const builtinMemory = 128 << 20

// recipe is part of the inputs' digest. It changes whenever the same files make another image.
const recipe = "1"

// BuildOptions name the inputs of the built-in image.
type BuildOptions struct {
	// Dir is the image's directory, which Build makes or replaces; its last element should be
	// Builtin.
	Dir string
	// CacheDir keeps the kernel's package between builds.
	CacheDir string
	// Agent is the path of a static banger-agent, which becomes /init.
	Agent string
	// Busybox is the path of a static busybox; /bin/busybox if empty.
	Busybox string
	// Package is the path of a linux-image .deb. If it is empty, Build uses the one in CacheDir,
	// and fetches it with apt-get if there is none.
	Package string
	// Refresh fetches the kernel's package even if CacheDir has one.
	Refresh bool
	Log     *slog.Logger // slog.Default() if nil
}

// Build makes the built-in image, unless Dir holds one of the same inputs. It runs dpkg-deb and
// busybox, and apt-cache and apt-get to fetch the kernel. It replaces Dir in one step; after an
// error Dir is unchanged.
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
	deb, err := host.FileSHA256(o.Package)
	if err != nil {
		return err
	}
	// The image's own small files are inputs as well.
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
	guest := boot.Guest{Agent: agent, Busybox: busybox, Applets: applets, Modules: modules}
	initrd, err := guest.Initramfs()
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
		Source: "built in: " + strings.TrimSuffix(filepath.Base(o.Package), ".deb") +
			", busybox, banger-agent",
		Inputs: inputs,
	}
	files := map[string][]byte{m.Kernel: kernel, m.Initrd: initrd}
	if err := writeImage(o.Dir, m, files); err != nil {
		return err
	}
	o.Log.Info("built the image", "dir", o.Dir, "digest", m.Digest, "kernel_bytes", len(kernel),
		"initrd_bytes", len(initrd), "seconds", time.Since(start).Seconds())
	return nil
}

// digest returns the digest of the lengths and bytes of parts: other parts have another, even if
// they join to the same bytes.
func digest(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d\n", len(p))
		h.Write(p)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}
