package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Installed is a kernel that is installed below a root directory: the running host's, or one that a
// package was unpacked to.
type Installed struct {
	Root    string // "/" for the host itself
	Release string // as uname -r has it
}

// kernelFiles are the places of a kernel of a release: Debian's, Gentoo's, Fedora's and Arch's. The
// last is the one that a NixOS has booted.
var kernelFiles = []string{
	"boot/vmlinuz-%s", "boot/kernel-%s", "lib/modules/%s/vmlinuz", "usr/lib/modules/%s/vmlinuz",
	"run/booted-system/kernel",
}

// moduleDirs are the places of the modules of a release. The last is NixOS's.
var moduleDirs = []string{
	"lib/modules/%s", "usr/lib/modules/%s", "run/booted-system/kernel-modules/lib/modules/%s",
}

// UnpackedIn returns the kernel of the linux-image package that was unpacked to root.
func UnpackedIn(root string) (Installed, error) {
	names, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err == nil && len(names) != 1 {
		err = fmt.Errorf("it has %d files /boot/vmlinuz-*, not one", len(names))
	}
	if err != nil {
		return Installed{}, err
	}
	return Installed{root, strings.TrimPrefix(filepath.Base(names[0]), "vmlinuz-")}, nil
}

// Running returns the kernel that runs this system, as its root directory has it.
func Running(root string) (Installed, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Installed{}, err
	}
	release := unix.ByteSliceToString(name.Release[:])
	if release == "" || strings.Contains(release, "/") {
		return Installed{}, fmt.Errorf("the kernel has the strange release %.64q", release)
	}
	return Installed{root, release}, nil
}

// Read returns the kernel, as the host boots it, and the modules that a guest loads, in that order.
// missing names the modules that the kernel lacks and a guest can do without. It opens files with
// the rights of the calling thread.
func (i Installed) Read() (bzImage []byte, modules []Module, missing []string, err error) {
	if bzImage, err = i.kernel(); err != nil {
		return nil, nil, nil, err
	}
	found, err := i.findModules()
	if err != nil {
		return nil, nil, nil, err
	}
	for _, name := range ModuleNames {
		switch err := found.load(name); {
		case errors.Is(err, errNoModule) && !needed[name]:
			missing = append(missing, name)
		case err != nil:
			return nil, nil, nil, fmt.Errorf("kernel %s: %w", i.Release, err)
		}
	}
	return bzImage, found.loaded, missing, nil
}

// kernel reads the kernel's file.
func (i Installed) kernel() ([]byte, error) {
	for _, form := range kernelFiles {
		name := filepath.Join(i.Root, strings.ReplaceAll(form, "%s", i.Release))
		b, err := readFile(name, memberLimit)
		switch {
		case err == nil:
			return b, nil
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("uid %d may not read the host's kernel: root can allow it with "+
				"`chmod a+r %s`, or make the image", threadUID(), name)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return nil, err
		}
	}
	return nil, fmt.Errorf("the host's kernel %s is neither in %s nor beside its modules: a container "+
		"has none; after an upgrade of the kernel, reboot", i.Release, filepath.Join(i.Root, "boot"))
}

// threadUID returns the uid that decides what files the calling thread may open.
func threadUID() int {
	now, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0) // changes nothing
	return int(int32(now))
}

// readFile reads a regular file of at most so many bytes.
func readFile(name string, most int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", name)
	case fi.Size() > most:
		return nil, fmt.Errorf("%s: more than %d bytes", name, most)
	}
	b, err := readLimited(f, most)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// findModules lists the modules of the release.
func (i Installed) findModules() (*moduleSet, error) {
	for _, form := range moduleDirs {
		dir := filepath.Join(i.Root, strings.ReplaceAll(form, "%s", i.Release))
		dir, err := filepath.EvalSymlinks(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return listModules(dir)
	}
	return nil, fmt.Errorf("the modules of the host's kernel %s are not in %s: a container has none; "+
		"after an upgrade of the kernel, reboot", i.Release, filepath.Join(i.Root, "lib/modules"))
}

// listModules finds the files of the modules in dir, and what modules are parts of the kernel.
func listModules(dir string) (*moduleSet, error) {
	s := &moduleSet{files: map[string]string{}, builtin: map[string]bool{}, done: map[string]bool{}}
	first := filepath.Join(dir, "kernel") + "/"
	if err := s.addDir(dir, first, map[string]bool{}); err != nil {
		return nil, err
	}
	list, err := readFile(filepath.Join(dir, "modules.builtin"), moduleLimit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.FieldsSeq(string(list)) {
		s.builtin[moduleOf(path.Base(line))] = true
	}
	return s, nil
}

// addDir adds the files of modules in dir and below it. It follows links, which NixOS has in the
// places of directories and files; seen holds the directories that it has entered. A module below
// first replaces one beside it: first is what the distribution built, and others may have put
// theirs beside it.
func (s *moduleSet) addDir(dir, first string, seen map[string]bool) error {
	target, err := filepath.EvalSymlinks(dir)
	if err != nil || seen[target] {
		return err
	}
	seen[target] = true
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if e.Name() == "build" || e.Name() == "source" { // links to the kernel's sources
			continue
		}
		fi, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a link to what was removed
		}
		if err != nil {
			return err
		}
		if fi.IsDir() {
			if err := s.addDir(name, first, seen); err != nil {
				return err
			}
			continue
		}
		module := moduleOf(e.Name())
		if module == "" || !fi.Mode().IsRegular() {
			continue
		}
		if s.files[module] == "" || strings.HasPrefix(name, first) {
			s.files[module] = name
		}
	}
	return nil
}
