package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// maxLinks bounds the links that makeDir follows, as the kernel does (path_resolution(7)).
const maxLinks = 40

// standardDirs are the directories that programs count on. Those that are not always made are made
// where a link leads to them.
var standardDirs = []struct {
	path   string
	mode   os.FileMode
	always bool
}{
	{"etc", 0o755, true}, {"run", 0o755, true}, {"tmp", 0o777 | fs.ModeSticky, true},
	{"var/run", 0o755, false}, {"var/lock", 0o777 | fs.ModeSticky, false},
	{"var/tmp", 0o777 | fs.ModeSticky, false},
}

// makeStandardDirs makes the directories that programs count on and that an image lacks.
func makeStandardDirs(root string) error {
	for _, d := range standardDirs {
		path := filepath.Join(root, d.path)
		info, err := os.Lstat(path)
		link := err == nil && info.Mode()&os.ModeSymlink != 0
		if !d.always && !link {
			continue
		}
		if err := makeDir(path, d.mode); err != nil {
			return fmt.Errorf("cannot prepare the guest's files: %w", err)
		}
	}
	return nil
}

// makeDir makes a directory and its parents, which are 0755, if it does not exist. Where links lead
// nowhere it makes what they lead to. The error says what stands in the way.
func makeDir(path string, mode os.FileMode) error { return makeLinked(path, mode, maxLinks) }

func makeLinked(path string, mode os.FileMode, links int) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%.128q is no directory", path)
	case links == 0:
		return fmt.Errorf("%.128q: too many links", path)
	}
	if target, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(target) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return err
			}
			target = filepath.Join(dir, target)
		}
		return makeLinked(target, mode, links-1)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return pathError(err)
	}
	if err := makeLinked(filepath.Dir(path), 0o755, links); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return pathError(err)
	}
	return os.Chmod(path, mode) // whatever the umask
}

// pathError shortens the path of an error, which the image's author has chosen.
func pathError(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return fmt.Errorf("%.128q: %w", at.Path, at.Err)
	}
	return err
}
