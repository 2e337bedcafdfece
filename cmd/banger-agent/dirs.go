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

// standardDirs are the directories that programs count on. Each is made where a link of its name
// leads nowhere.
var standardDirs = []struct {
	path    string
	mode    os.FileMode
	missing bool // it is made where nothing is
	needed  bool // a file in its place is an error
}{
	{"etc", 0o755, true, true}, {"run", 0o755, true, false},
	{"tmp", 0o777 | fs.ModeSticky, true, false}, {"var/run", 0o755, false, false},
	{"var/lock", 0o777 | fs.ModeSticky, false, false},
	{"var/tmp", 0o777 | fs.ModeSticky, false, false},
}

// makeStandardDirs makes the directories that programs count on and that an image lacks. Most files
// in their places stay: docker runs an image whose program is /run.
func makeStandardDirs(root string) error {
	for _, d := range standardDirs {
		path := filepath.Join(root, d.path)
		if _, err := os.Stat(path); err == nil && !d.needed {
			continue
		}
		if _, err := os.Lstat(path); err != nil && !d.missing {
			continue
		}
		if err := makeDir(path, d.mode); err != nil {
			return fmt.Errorf("cannot make /%s: %w", d.path, err)
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
