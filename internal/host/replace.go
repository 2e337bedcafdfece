package host

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ReplaceDir makes target a directory with the files that fill puts into it. After a crash target
// is the old directory or the new one, never a part of either.
func ReplaceDir(target string, fill func(dir string) error) error {
	parent := filepath.Dir(target)
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(target)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	// Other users, such as those of VMMs, may read it; its parent decides which of them get here.
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return err
	}
	if err := SyncDir(tmp); err != nil {
		return err
	}
	// RENAME_EXCHANGE leaves no moment without a directory. The old one ends up in tmp.
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
	return SyncDir(parent)
}

// unfinishedSuffix ends the names that ReplaceFile gives to new files.
const unfinishedSuffix = ".banger"

// RemoveUnfinished removes what calls of ReplaceFile for this path left that ended with their
// process. Files that were changed later than age ago may be another process's and stay.
func RemoveUnfinished(path string, age time.Duration) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, "."+filepath.Base(path)+"-") ||
			!strings.HasSuffix(name, unfinishedSuffix) {
			continue
		}
		info, e := e.Info()
		if e == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) >= age {
			err = errors.Join(err, os.Remove(filepath.Join(filepath.Dir(path), name)))
		}
	}
	return err
}

// ReplaceFile makes a file of this mode with what fill writes to it. The name stands for the old
// file or the new one, never for a part. After a crash it is one of them, and RemoveUnfinished
// removes the rest.
func ReplaceFile(path string, mode os.FileMode, fill func(f *os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*"+unfinishedSuffix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	err = errors.Join(f.Chmod(mode), fill(f))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// LinkOrCopy makes a second name of a file, or a copy on another file system. Zeros become holes.
func LinkOrCopy(from, to string) error {
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
	n, err := io.Copy(&HoleWriter{File: out}, in)
	if err == nil {
		err = out.Truncate(n)
	}
	if err != nil {
		out.Close()
		return err
	}
	return CloseSynced(out)
}

// WriteSynced writes a new file that every user can read, and syncs it.
func WriteSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	return CloseSynced(f)
}

// CloseSynced makes a file readable for every user, whatever the umask, syncs it and closes it.
func CloseSynced(f *os.File) error {
	return errors.Join(f.Chmod(0o644), f.Sync(), f.Close())
}

// SyncDir syncs the names in a directory, on file systems that can do that (fsync(2), EINVAL).
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
