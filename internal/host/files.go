package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MakeDirs makes a directory and its missing parents with this mode, whatever the umask.
// Directories that exist keep theirs. The names of new ones are synced.
func MakeDirs(dir string, mode fs.FileMode) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := MakeDirs(parent, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, mode); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil // another process has just made it
		}
		return err
	}
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(dir))
}

// OpenPrivate opens a file that only this process's user can open, or makes it.
// It removes other users' permissions from an existing one. It refuses a file that another user
// could have put there: a file of another owner, with two names, or of another kind.
func OpenPrivate(path string) (*os.File, error) {
	return openPrivate(path, unix.O_RDWR|unix.O_CREAT)
}

// MakePrivate makes an existing file private, as OpenPrivate does. A missing one is no error.
func MakePrivate(path string) error {
	f, err := openPrivate(path, unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func openPrivate(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link: remove it", path)
	}
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func checkPrivate(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("%s is not a regular file: remove it", f.Name())
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to uid %d, not to uid %d, which bangerd runs as: chown or remove it",
			f.Name(), st.Uid, os.Geteuid())
	case st.Nlink != 1:
		return fmt.Errorf("%s has %d names (hard links): remove the others", f.Name(), st.Nlink)
	case st.Mode&0o7777 != 0o600:
		return f.Chmod(0o600)
	}
	return nil
}

// FileSHA256 returns the hexadecimal SHA-256 of a file.
func FileSHA256(name string) (string, error) {
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
