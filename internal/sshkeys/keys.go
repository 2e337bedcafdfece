// Package sshkeys checks the keys that may log in to a guest and keeps a guest's own ssh host key.
// It imports nothing else of banger but the leaf internal/host.
package sshkeys

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// maxHostKey bounds the file of a host key, bytes.
const maxHostKey = 4 << 10

// CheckAuthorized returns an error for the first line that is no line of authorized_keys of
// sshd(8).
func CheckAuthorized(lines string) error {
	for _, line := range strings.Split(lines, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		if hasControl(line) {
			return errors.New("a line of authorized_keys has a control character")
		}
		if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil {
			return fmt.Errorf("%.40q... is not a public key, such as ssh-ed25519 AAAA... NAME", line)
		}
	}
	return nil
}

// hasControl reports whether a line has a control character that a terminal may obey: of ASCII but
// a tab, or of ISO 8859-1, as a single byte or as UTF-8.
func hasControl(line string) bool {
	for len(line) > 0 {
		r, n := utf8.DecodeRuneInString(line)
		if r == utf8.RuneError && n == 1 {
			r = rune(line[0])
		}
		if unicode.IsControl(r) && r != '\t' {
			return true
		}
		line = line[n:]
	}
	return false
}

// HostKey returns the private host key at path as PEM, and the public one as `ssh-ed25519 AAAA...`.
// It makes the key, durably, if the file does not exist.
func HostKey(path string) (private, public string, err error) {
	text, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = generate(path); errors.Is(err, fs.ErrExist) { // another has just made it
			text, err = read(path)
		}
	}
	if err != nil {
		return "", "", err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", path, err)
	}
	public = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	return string(text), public, nil
}

// MoveHostKey moves a host key. A file that holds no key stays. The key is copied: a process that
// has the old file open can write to it. A key that is at the new path already stays there.
func MoveHostKey(from, to string) error {
	text, err := read(from)
	if err != nil {
		return nil // there is none, or none to keep
	}
	if _, err := ssh.ParsePrivateKey(text); err != nil {
		return nil
	}
	if err := keep(to, text); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Remove(from)
}

func read(path string) ([]byte, error) {
	return host.ReadRegular(path, host.AnyOwner, maxHostKey)
}

func generate(path string) ([]byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(block)
	return text, keep(path, text)
}

// keep makes the file of a key, durably and whole or not at all.
func keep(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // unless it has become the key
	_, err = io.Copy(f, bytes.NewReader(text))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// The key never has two names: another that reads it would take it for a trap.
	err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // this file system cannot
		err = os.Link(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return host.SyncDir(filepath.Dir(path))
}
