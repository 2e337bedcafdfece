package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// firstMark is on a root disk whose first start has not been completed.
const firstMark = ".banger-first-start"

// keygenWait bounds the time in which an image's ssh-keygen makes one key. RSA takes long where the
// CPU is emulated.
const keygenWait = 2 * time.Minute

// seeds are the files from which random numbers would begin alike in all VMs of an image.
var seeds = []string{"var/lib/systemd/random-seed", "var/lib/urandom/random-seed",
	"var/lib/random-seed", "var/lib/misc/random-seed", "var/lib/seedrng/seed.credit",
	"var/lib/seedrng/seed.no-credit"}

// neverMounted reports whether the ext4 on a device is as mke2fs(8) made it: no kernel has mounted
// it for writing. It reads s_mtime and s_mnt_count of the superblock (fs/ext4/ext4.h of Linux).
func neverMounted(device string) bool {
	var b [10]byte
	return readSuperblock(device, 0x2c, b[:]) == nil &&
		binary.LittleEndian.Uint32(b[:]) == 0 && binary.LittleEndian.Uint16(b[8:]) == 0
}

// firstStart makes the VM of a new root disk a machine of its own. unused is true before the disk
// was ever mounted. A first start that was cut short is done again. Errors are logged only: the
// guest runs all the same.
func firstStart(root string, unused bool) {
	mark := filepath.Join(root, firstMark)
	if _, err := os.Lstat(mark); err != nil && !unused {
		return
	}
	err := syncedFile(mark)
	err = errors.Join(err, firstHosts(root), renewMachineID(root), renewHostKeys(root))
	for _, seed := range seeds {
		if e := os.Remove(filepath.Join(root, seed)); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		log.Printf("not all that the image shares with others was renewed: %v", err)
	}
	unix.Sync()
	if err := os.Remove(mark); err != nil {
		log.Print(err)
	}
}

func syncedFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// renewMachineID replaces the machine ids of an image (machine-id(5)). An image without one, or
// with an empty or uninitialized one, leaves it to its systemd.
func renewMachineID(root string) error {
	var id [16]byte
	_, _ = rand.Read(id[:])                         // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // a UUID of version 4, as systemd makes it
	text := []byte(hex.EncodeToString(id[:]) + "\n")
	var errs []error
	for _, name := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		path, err := filepath.EvalSymlinks(filepath.Join(root, name))
		if err != nil { // it is missing, or a link to the other
			continue
		}
		old, err := os.ReadFile(path)
		if s := strings.TrimSpace(string(old)); err != nil || s == "" || s == "uninitialized" {
			continue
		}
		errs = append(errs, putFile(path, text))
	}
	return errors.Join(errs...)
}

// renewHostKeys replaces the ssh host keys of an image by new ones of the same kinds, as far as the
// image has an ssh-keygen(1). The others are gone; the host gives the guest an ed25519 key anyway.
func renewHostKeys(root string) error {
	keys, err := filepath.Glob(filepath.Join(root, "etc/ssh/ssh_host_*_key"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range keys {
		for _, p := range []string{path, path + ".pub", path + "-cert.pub"} {
			if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		kind := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "ssh_host_"), "_key")
		errs = append(errs, makeHostKey(kind, path))
	}
	return errors.Join(errs...)
}

// makeHostKey has the guest's ssh-keygen make a key. Without such a program it does nothing.
func makeHostKey(kind, path string) error {
	program, err := exec.LookPath("ssh-keygen")
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), keygenWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-q", "-N", "", "-t", kind, "-f", path)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot make an ssh host key %.32q: %w: %.128q", kind, err, out)
	}
	return nil
}
