package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// AnyOwner is the owner for OpenRegular where it does not matter whose file it is.
const AnyOwner = -1

// OpenRegular opens a file in a directory that another user may write, such as that of a VM's user.
// It returns an error for anything but a file, and never opens it: it follows no symbolic link,
// waits for no FIFO and opens no device. The file is regular, has one link, and belongs to the uid
// owner unless that is AnyOwner. flags are those of open(2) without O_CREAT. The directory's own
// path must be out of others' reach.
func OpenRegular(path string, flags, owner int) (*os.File, error) {
	bad := func(why error) error { return &os.PathError{Op: "open", Path: path, Err: why} }
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, bad(err)
	}
	defer unix.Close(dir)
	// The O_PATH descriptor has no effect on the file, whose type and owner are checked first.
	name, err := unix.Openat2(dir, filepath.Base(path), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ELOOP) {
		err = errors.New("it is a symbolic link")
	}
	if err != nil {
		return nil, bad(err)
	}
	defer unix.Close(name)
	if err := checkRegular(name, owner); err != nil {
		return nil, bad(err)
	}
	// O_NONBLOCK: the open does not wait for the end of a lease (fcntl(2)).
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(name), flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, bad(err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func checkRegular(fd, owner int) error {
	var st unix.Stat_t
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return errors.New("it is a symbolic link")
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("it is not a regular file")
	case st.Nlink != 1:
		return fmt.Errorf("it has %d names, a file here has one", st.Nlink)
	case owner != AnyOwner && int(st.Uid) != owner:
		return fmt.Errorf("it belongs to uid %d and not to %d", st.Uid, owner)
	}
	return nil
}

// ReadRegular returns the content of a file that OpenRegular may open. It fails if the file has
// more bytes than most.
func ReadRegular(path string, owner int, most int64) ([]byte, error) {
	f, err := OpenRegular(path, os.O_RDONLY, owner)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s is longer than %d bytes", path, most)
	}
	return b, err
}

// OpenOrCreate is OpenRegular that makes a file that is not there, of mode 0600.
func OpenOrCreate(path string, flags, owner int) (*os.File, error) {
	f, err := OpenRegular(path, flags, owner)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	f, err = os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) { // another process has just made it
		return OpenRegular(path, flags, owner)
	}
	return f, err
}

// OpenDir opens a directory to pass it on, or to shorten the paths of the files in it.
func OpenDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
