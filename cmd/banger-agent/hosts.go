package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/vmm/guest"
)

// localHosts are the lines of hosts(5) that programs count on, as docker writes them.
const localHosts = "127.0.0.1\tlocalhost\n" +
	"::1\tlocalhost ip6-localhost ip6-loopback\n" +
	"fe00::\tip6-localnet\n" +
	"ff00::\tip6-mcastprefix\n" +
	"ff02::1\tip6-allnodes\n" +
	"ff02::2\tip6-allrouters\n"

// hostsLines are banger's lines in /etc/hosts. Without an address the guest's own name stands for
// 127.0.1.1, as in Debian.
func hostsLines(name string, addresses ...netip.Prefix) string {
	var b strings.Builder
	b.WriteString(localHosts)
	if name == "" || name == "localhost" {
		return b.String()
	}
	none := true
	for _, a := range addresses {
		if a.IsValid() {
			none = false
			fmt.Fprintf(&b, "%s\t%s\n", a.Addr(), name)
		}
	}
	if none {
		fmt.Fprintf(&b, "127.0.1.1\t%s\n", name)
	}
	return b.String()
}

// setNames makes localhost and the guest's own name known in the guest below root. Errors are
// logged only: the guest runs all the same.
func setNames(root string, c *guest.Config) {
	if err := setHosts(root, hostsLines(c.Hostname, c.Address, c.Address6)); err != nil {
		log.Printf("cannot write /etc/hosts: %v", err)
	}
	// Otherwise systemd would set the image's name at the next start, and hostnamed at any time.
	if err := setHostname(root, c.Hostname); err != nil {
		log.Printf("cannot write /etc/hostname: %v", err)
	}
}

// firstHosts writes /etc/hosts at a VM's first start. As in docker, nothing of the image's stays:
// its lines are from where the image was built.
func firstHosts(root string) error {
	path := filepath.Join(root, "etc/hosts")
	if isDir(path) {
		if err := os.Rename(path, path+".image"); err != nil {
			return err
		}
	}
	return putFile(path, []byte(withBlock("", strings.TrimSpace(hostsLines("")))))
}

// setHosts keeps banger's lines in /etc/hosts and leaves all others alone.
func setHosts(root, lines string) error {
	path := filepath.Join(root, "etc/hosts")
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := withBlock(string(old), strings.TrimSpace(lines))
	if err == nil && text == string(old) {
		return nil
	}
	return putFile(path, []byte(text))
}

func setHostname(root, name string) error {
	path := filepath.Join(root, "etc/hostname")
	if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == name {
		return nil
	}
	return putFile(path, []byte(name+"\n"))
}

// putFile replaces a file of everybody's, whole or not at all. It writes to what a link leads to,
// and replaces a link that leads nowhere.
func putFile(path string, text []byte) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() &&
		info.Mode()&os.ModeSymlink == 0 {
		return fmt.Errorf("%s is no file", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	next := path + ".banger"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(next, text, 0o644); err != nil {
		return err
	}
	defer os.Remove(next) // once renamed there is nothing to remove
	err := os.Rename(next, path)
	if errors.Is(err, unix.EBUSY) { // it is mounted by itself
		return os.WriteFile(path, text, 0o644)
	}
	return err
}
