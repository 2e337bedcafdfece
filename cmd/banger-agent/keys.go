package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/host"
	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

// The lines between which banger's own stand in a user's file, such as authorized_keys.
const (
	blockBegin = "# begin: kept by banger"
	blockEnd   = "# end: kept by banger"
)

// setKeys writes root's authorized keys and the host key below root. Empty texts change nothing.
func setKeys(root string, c *guest.Config) error {
	if c.AuthorizedKeys != "" {
		home := "/root"
		if a, err := findAccount("0"); err == nil {
			home = a.home
		}
		keys := strings.TrimSpace(c.AuthorizedKeys)
		if err := setAuthorizedKeys(filepath.Join(root, home), keys); err != nil {
			return fmt.Errorf("cannot set the authorized keys: %w", err)
		}
	}
	if c.HostKey != "" {
		if err := setHostKey(root, c.HostKey); err != nil {
			return fmt.Errorf("cannot set the ssh host key: %w", err)
		}
	}
	return nil
}

// setAuthorizedKeys replaces banger's lines in the file of sshd(8) in that home.
func setAuthorizedKeys(home, keys string) error {
	dir := filepath.Join(home, ".ssh")
	path := filepath.Join(dir, "authorized_keys")
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := withBlock(string(old), keys)
	if text == string(old) {
		return nil
	}
	// sshd takes no keys from where others may write.
	for _, made := range []string{home, dir} { // links that lead nowhere, too
		if err := makeDir(made, 0o700); err != nil {
			return err
		}
	}
	return replaceFile(path, []byte(text))
}

// withBlock returns text with these lines between the marks, which it adds at the end if need be.
// Without lines there are no marks.
func withBlock(text, lines string) string {
	before, rest, found := strings.Cut(text, blockBegin+"\n")
	after := ""
	if found {
		_, after, _ = strings.Cut(rest, blockEnd+"\n")
	}
	if lines == "" {
		return before + after
	}
	if before != "" && !strings.HasSuffix(before, "\n") {
		before += "\n"
	}
	return before + blockBegin + "\n" + lines + "\n" + blockEnd + "\n" + after
}

// setHostKey gives sshd its key, where there is an sshd, and has it read that.
func setHostKey(root, key string) error {
	etc := filepath.Join(root, "etc", "ssh")
	if !isDir(etc) {
		return nil
	}
	path := filepath.Join(etc, "ssh_host_ed25519_key")
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, []byte(key)) {
		return nil
	}
	if err := replaceFile(path, []byte(key)); err != nil {
		return err
	}
	// The public half that may be there is of another key; sshd derives it.
	if err := os.Remove(path + ".pub"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// One that runs reads its keys anew at SIGHUP (sshd(8)); one that has yet to start finds them.
	b := readFile(filepath.Join(root, "run", "sshd.pid"))
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	comm := readFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err == nil && pid > 1 && string(comm) == "sshd\n" {
		_ = unix.Kill(pid, unix.SIGHUP) // gone, perhaps
	}
	return nil
}

// replaceFile writes a file that only its owner may read, whole or not at all.
func replaceFile(path string, text []byte) error {
	return host.ReplaceFile(path, 0o600, func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
}
