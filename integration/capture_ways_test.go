package integration

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"
)

// way opens a file, reads it to its end, once or more, and closes it.
type way func(path string) ([][]byte, error)

// opening returns a way that calls do with the open file.
func opening(do func(fd int) ([][]byte, error)) way {
	return func(path string) ([][]byte, error) {
		fd, err := ignoringEINTR(func() (int, error) {
			return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		return do(fd)
	}
}

// ignoringEINTR repeats a system call that a signal of Go's scheduler interrupts.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// blocks reads on to the end, size bytes at a time.
func blocks(fd, size int) ([]byte, error) {
	var text []byte
	buf := make([]byte, size)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf) })
		if err != nil || n == 0 {
			return text, err
		}
		text = append(text, buf[:n]...)
	}
}

func inBlocks(size int) way {
	return opening(func(fd int) ([][]byte, error) {
		text, err := blocks(fd, size)
		return [][]byte{text}, err
	})
}

// again reads the whole file twice through one open.
var again = opening(func(fd int) ([][]byte, error) {
	first, err := blocks(fd, 8192)
	if err != nil {
		return nil, err
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	second, err := blocks(fd, 8192)
	return [][]byte{first, second}, err
})

// lines reads as a shell's slow `while read line` does. It reads a block and seeks back to the end
// of the line.
var lines = opening(func(fd int) ([][]byte, error) {
	var text []byte
	buf := make([]byte, 128)
	for line := []byte(nil); ; line = line[:0] {
		for {
			n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf) })
			if err != nil || n == 0 {
				return [][]byte{append(text, line...)}, err
			}
			if end := bytes.IndexByte(buf[:n], '\n'); end >= 0 {
				if _, err := unix.Seek(fd, int64(end+1-n), unix.SEEK_CUR); err != nil {
					return nil, err
				}
				text = append(append(text, line...), buf[:end+1]...)
				break
			}
			line = append(line, buf[:n]...)
		}
		time.Sleep(2 * time.Millisecond) // the shell works on the line
	}
})

// sendfile copies in the kernel, as busybox's cp and Python's shutil.copyfile do.
var sendfile = opening(func(fd int) ([][]byte, error) {
	to, err := unix.MemfdCreate("copy", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(to)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Sendfile(to, fd, nil, 8<<20) })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
	}
	if _, err := unix.Seek(to, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	text, err := blocks(to, 64<<10)
	return [][]byte{text}, err
})
