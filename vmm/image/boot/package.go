package boot

import (
	"archive/tar"
	"bytes"
	"context"
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

	"banger/internal/host"
)

// kernelMeta is the package that depends on Debian's newest kernel for clouds.
const kernelMeta = "linux-image-cloud-amd64"

// memberLimit bounds one file of a package, in bytes.
const memberLimit = 256 << 20

// FetchKernel returns the path of the newest kernel package in cacheDir. It fetches the package
// with apt-get if there is none, or if refresh is set.
func FetchKernel(ctx context.Context, cacheDir string, refresh bool,
	log *slog.Logger) (string, error) {
	if cacheDir == "" {
		return "", errors.New("no cache directory for the kernel's package")
	}
	dir := filepath.Join(cacheDir, "kernel")
	if !refresh {
		if name := newestPackage(dir); name != "" {
			return name, nil
		}
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
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
	log.Info("fetching the kernel", "package", pkg)
	err = host.ReplaceDir(dir, func(tmp string) error {
		// As root apt would fetch as its own user, which cannot write here, and warn of it.
		_, err := host.Run(ctx, tmp,
			"apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", pkg)
		if err == nil && newestPackage(tmp) == "" {
			err = fmt.Errorf("apt-get download %s left no package", pkg)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return newestPackage(dir), nil
}

// newestPackage returns the path of the last .deb in dir by name, empty if there is none.
func newestPackage(dir string) string {
	names, _ := filepath.Glob(filepath.Join(dir, "linux-image-*.deb"))
	if len(names) == 0 {
		return ""
	}
	sort.Strings(names)
	return names[len(names)-1]
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

// ReadKernel returns the kernel of a linux-image .deb, and the modules that the guest loads by
// their names. It runs dpkg-deb.
func ReadKernel(ctx context.Context, deb string) (bzImage []byte,
	modules map[string][]byte, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := host.StartExpendable(cmd); err != nil {
		return nil, nil, err
	}
	bzImage, modules, err = readKernelTar(out)
	if err == nil {
		// dpkg-deb fails unless its whole output is read.
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

// readKernelTar reads the package's files. It returns an error if a file is missing.
func readKernelTar(r io.Reader) (bzImage []byte, modules map[string][]byte, err error) {
	wanted := make(map[string]bool)
	for _, m := range ModuleNames {
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
		isModule := wanted[base] &&
			(strings.HasPrefix(dir, "/lib/modules/") || strings.HasPrefix(dir, "/usr/lib/modules/"))
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
	for _, m := range ModuleNames {
		if modules[m] == nil {
			return nil, nil, fmt.Errorf("no module %s.ko in it", m)
		}
	}
	return bzImage, modules, nil
}
