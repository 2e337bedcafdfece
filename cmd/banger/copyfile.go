package main

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyBuffer is the length of one read or write, in bytes: the mount's longest request.
const copyBuffer = 1 << 20

// leaf copies a file or a symbolic link.
func (c *copier) leaf(it *item) error {
	c.seen.Add(1)
	src, dst := it.dir.src, it.dir.dst
	isFile := kindOf(&it.stat) == unix.S_IFREG
	if !c.sync && isFile {
		// Most names are new. To look first would cost a round trip to the guest.
		if err := c.copyFile(it, true); err != unix.EEXIST {
			return err
		}
	}
	var old unix.Stat_t
	exists := dst != nil
	if exists {
		var err error
		if old, err = lstatAt(dst, it.to); err == unix.ENOENT {
			exists = false
		} else if err != nil {
			return err
		}
	}
	if exists && c.sync {
		same, err := c.same(it, &old)
		if err != nil {
			return err
		}
		if mode := c.permissions(&it.stat); same && isFile && mode != old.Mode&0o7777 && !c.dryRun {
			return unix.Fchmodat(int(dst.Fd()), it.to, mode, 0)
		}
		if same {
			return nil
		}
	}
	c.copied.Add(1)
	switch {
	case c.dryRun:
		c.say(c.std.out, "copy %s", it.path)
		return nil
	case exists && kindOf(&old) == unix.S_IFDIR:
		return unix.EISDIR
	case exists && (!isFile || kindOf(&old) != unix.S_IFREG):
		if err := unix.Unlinkat(int(dst.Fd()), it.to, 0); err != nil {
			return err
		}
	}
	if isFile {
		return c.copyFile(it, false)
	}
	target, err := readlinkAt(src, it.from)
	if err == nil {
		err = unix.Symlinkat(string(target), int(dst.Fd()), it.to)
	}
	if err == nil {
		err = setTimes(dst, it.to, &it.stat)
	}
	return err
}

// same reports whether an existing copy needs no change but perhaps of its mode.
func (c *copier) same(it *item, old *unix.Stat_t) (bool, error) {
	st := &it.stat
	switch {
	case kindOf(st) != kindOf(old):
		return false, nil
	case kindOf(st) == unix.S_IFLNK:
		return equal(it, readlinkAt)
	case st.Size != old.Size:
		return false, nil
	case c.checksum:
		return equal(it, sumAt)
	}
	// A side may keep whole seconds only.
	return st.Mtim.Sec == old.Mtim.Sec &&
		(st.Mtim.Nsec == old.Mtim.Nsec || st.Mtim.Nsec == 0 || old.Mtim.Nsec == 0), nil
}

// equal compares the results of get for an item and for its copy.
func equal(it *item, get func(dir *os.File, name string) ([]byte, error)) (bool, error) {
	a, err := get(it.dir.src, it.from)
	if err != nil {
		return false, err
	}
	b, err := get(it.dir.dst, it.to)
	return bytes.Equal(a, b), err
}

// copyFile copies a regular file, its mode and its times. With fresh it returns EEXIST if the name
// is in use.
func (c *copier) copyFile(it *item, fresh bool) (err error) {
	in, err := openFileAt(it.dir.src, it.from)
	if err != nil {
		return err
	}
	defer in.Close()
	mode, how := c.permissions(&it.stat), unix.O_TRUNC
	if fresh {
		how = unix.O_EXCL
	}
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_NONBLOCK | unix.O_NOCTTY | how
	out, err := openat(it.dir.dst, it.to, flags, mode)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
	}()
	made := unix.Stat_t{Mode: unix.S_IFREG | mode} // the umask is 0
	if !fresh {
		if made, err = regularStat(out); err != nil {
			return err
		}
	}
	if isSparse(&it.stat) {
		err = c.copySparse(in, out)
	} else {
		err = c.copyData(in, out, it.stat.Size)
	}
	if err != nil {
		return err
	}
	if made.Mode&0o7777 != mode {
		if err := unix.Fchmod(int(out.Fd()), mode); err != nil {
			return err
		}
	}
	return setOpenTimes(out, &it.stat)
}

// copyData copies in to its end, about size bytes. Of many it reads some while it writes others.
func (c *copier) copyData(in io.Reader, out io.Writer, size int64) error {
	counted := io.MultiWriter(out, (*counter)(&c.bytes))
	if size < copyBuffer {
		return transfer(counted, in, size+4096)
	}
	near, far := io.Pipe()
	read := make(chan error, 1)
	go func() { // ends at the end of in, or when near is closed
		err := transfer(far, in, copyBuffer)
		far.Close()
		read <- err
	}()
	err := transfer(counted, near, copyBuffer)
	near.Close()
	if readErr := <-read; !errors.Is(readErr, io.ErrClosedPipe) {
		err = errors.Join(err, readErr)
	}
	return err
}
