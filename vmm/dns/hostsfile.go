package dns

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// maxHosts bounds the hosts file that is changed, in bytes.
const maxHosts = 16 << 20

// WriteHosts replaces the owner's block of the file, between two marks, by lines. The owner is a
// bridge's name. Without lines it removes the block. Everything else stays. The file is replaced in
// one step with its mode and owner; a file that is a mount point is written in place. Nothing is
// written if nothing would change.
func WriteHosts(path, owner string, lines []byte) error {
	if err := writeHosts(path, owner, lines); err != nil {
		return fmt.Errorf("cannot keep names in %s: %w", path, err)
	}
	return nil
}

// HasHosts reports whether the file keeps a block for owner.
func HasHosts(path, owner string) bool {
	b, err := os.ReadFile(path)
	return err == nil && bytes.Contains(b, beginMark(owner))
}

func beginMark(owner string) []byte {
	return []byte("# banger " + owner + ": begin, kept by bangerd\n")
}

func writeHosts(path, owner string, lines []byte) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxHosts {
		return errors.New("it is no hosts file")
	}
	old, err := os.ReadFile(real)
	if err != nil {
		return err
	}
	text := withBlock(old, owner, lines)
	if bytes.Equal(text, old) {
		return nil
	}
	err = replace(real, info, text)
	if errors.Is(err, unix.EBUSY) {
		return overwrite(real, text)
	}
	return err
}

// withBlock gives the file's text with the block changed, where it is; a new one comes last.
func withBlock(old []byte, owner string, lines []byte) []byte {
	begin := beginMark(owner)
	end := []byte("# banger " + owner + ": end\n")
	before, rest, found := bytes.Cut(old, begin)
	if found {
		if _, after, ended := bytes.Cut(rest, end); ended {
			rest = after
		} // otherwise somebody took the end away, and nobody knows what is ours
	}
	text := bytes.Clone(before)
	if len(lines) > 0 {
		if n := len(text); n > 0 && text[n-1] != '\n' {
			text = append(text, '\n')
		}
		text = append(append(append(text, begin...), lines...), end...)
	}
	return append(text, rest...)
}

// replace writes a new file beside the old one and renames it. It removes what a daemon left there
// that was killed meanwhile. Other daemons may be at work.
func replace(path string, like fs.FileInfo, text []byte) error {
	if err := host.RemoveUnfinished(path, time.Minute); err != nil {
		return err
	}
	return host.ReplaceFile(path, like.Mode().Perm(), func(f *os.File) error {
		if s, ok := like.Sys().(*syscall.Stat_t); ok {
			if err := f.Chown(int(s.Uid), int(s.Gid)); err != nil {
				return err
			}
		}
		_, err := f.Write(text)
		return err
	})
}

// overwrite never leaves the file empty: what is too much goes last.
func overwrite(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(text, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
}
