package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// Install puts the image in directory src into imagesDir, under src's own
// name, and makes imagesDir if need be. Files are linked where that is
// possible and copied elsewhere. It replaces an older image of that name in one
// step, does nothing when the same image is there already, and has synced what it wrote when it returns.
func Install(src, imagesDir string) error {
	name := filepath.Base(filepath.Clean(src))
	if err := install(src, imagesDir, name); err != nil {
		return fmt.Errorf("cannot install image %s: %w", name, err)
	}
	return nil
}

func install(src, imagesDir, name string) error {
	if vmm.CheckName(name) != nil {
		return fmt.Errorf("%q is no name for an image", name)
	}
	m, err := readManifest(src)
	if err != nil {
		return err
	}
	target := filepath.Join(imagesDir, name)
	if have, err := readManifest(target); err == nil && have.Digest == m.Digest && have.Inputs == m.Inputs {
		return nil
	}
	if err := host.MakeDirs(imagesDir, 0o755); err != nil {
		return err
	}
	return replaceDir(target, func(dir string) error {
		for _, file := range append(m.files(), manifestName) {
			if err := linkOrCopy(filepath.Join(src, file), filepath.Join(dir, file)); err != nil {
				return err
			}
		}
		return nil
	})
}

// replaceDir makes target a directory with what fill puts into it, all of it
// or nothing: after a crash target is the old one or the new one.
func replaceDir(target string, fill func(dir string) error) error {
	parent := filepath.Dir(target)
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(target)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	// Only the directory of all images is closed. VMMs, which run as other users, inherit a
	// descriptor of the kernel and open it anew.
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return err
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	// RENAME_EXCHANGE leaves no moment without an image; what was replaced ends up in tmp and goes with it.
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, target, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.ENOENT):
		err = os.Rename(tmp, target)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		// This file system cannot exchange.
		if err = os.RemoveAll(target); err == nil {
			err = os.Rename(tmp, target)
		}
	}
	if err != nil {
		return err
	}
	return syncDir(parent)
}

func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return closeSynced(out)
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	return closeSynced(f)
}

// closeSynced also sets the mode for good: the daemon's umask must not hide an image from its VMMs.
func closeSynced(f *os.File) error {
	return errors.Join(f.Chmod(0o644), f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeImage writes m and its files, which are given by name, as the image dir.
func writeImage(dir string, m *manifest, files map[string][]byte) error {
	if err := host.MakeDirs(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return replaceDir(dir, func(tmp string) error {
		for name, b := range files {
			if err := writeSynced(filepath.Join(tmp, name), b); err != nil {
				return err
			}
		}
		return writeManifest(tmp, m)
	})
}

// writeManifest writes dir's image.json.
func writeManifest(dir string, m *manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, manifestName), append(text, '\n'))
}
