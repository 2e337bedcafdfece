package vmm

import (
	"bytes"
	"context"
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

	"banger/internal/host"
	"banger/vmm/guest"
)

// HostKeyFile is the private ssh host key in a VM's directory.
const HostKeyFile = "ssh_host_ed25519_key"

const (
	maxHostKey        = 4 << 10
	maxAuthorizedKeys = 32 << 10 // bytes, which an agent's request has room for
)

// checkAuthorizedKeys reports the first line that is no line of authorized_keys of sshd(8).
func checkAuthorizedKeys(lines string) error {
	if len(lines) > maxAuthorizedKeys {
		return fmt.Errorf("authorized_keys has %d bytes, %d are allowed: %w", len(lines), maxAuthorizedKeys, ErrTooBig)
	}
	for _, line := range strings.Split(lines, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		if hasControl(line) {
			return fmt.Errorf("a line of authorized_keys has a control character: %w", ErrInvalid)
		}
		if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil {
			return fmt.Errorf("%.40q... is not a public key, such as ssh-ed25519 AAAA... NAME: %w", line, ErrInvalid)
		}
	}
	return nil
}

// hasControl reports whether a line has what a terminal may obey: a control character other than a
// tab, of ISO 8859-1 or as UTF-8.
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

// hostKey gives the VM's private ssh host key as PEM. The first call makes it, durably; the VM's directory has to be there.
func (v *VM) hostKey() (string, error) {
	path := filepath.Join(v.Snapshot().Dir, HostKeyFile)
	text, err := readHostKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = makeHostKey(path); errors.Is(err, fs.ErrExist) { // another has just made it
			text, err = readHostKey(path)
		}
	}
	if err != nil {
		return "", err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	public := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	v.public.Store(&public)
	return string(text), nil
}

// HostKey is the public ssh host key that the guest was given, as `ssh-ed25519 AAAA...`; empty before its first start.
func (v *VM) HostKey() string {
	if public := v.public.Load(); public != nil {
		return *public
	}
	if _, err := os.Lstat(filepath.Join(v.Snapshot().Dir, HostKeyFile)); err != nil {
		return ""
	}
	if _, err := v.hostKey(); err != nil {
		v.m.o.Log.Warn("cannot read a VM's ssh host key", "vm", v.Snapshot().Name, "err", err)
		return ""
	}
	return *v.public.Load()
}

func readHostKey(path string) ([]byte, error) {
	f, err := host.OpenRegular(path, os.O_RDONLY, host.AnyOwner)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() > maxHostKey {
		return nil, errors.Join(err, fmt.Errorf("%s is not a key", path))
	}
	return io.ReadAll(io.LimitReader(f, maxHostKey))
}

// makeHostKey puts a new key there; what it gives is on the disk.
func makeHostKey(path string) ([]byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(block)
	return text, keepHostKey(path, text)
}

// keepHostKey makes the file of a key, durably; it is never there in part.
func keepHostKey(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+HostKeyFile+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone, if all went well
	_, err = io.Copy(f, bytes.NewReader(text))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	return host.SyncDir(filepath.Dir(path))
}

// keysFor is what an agent is told of the keys: never nothing, which would leave those that it has.
func keysFor(c *Config) string { return c.AuthorizedKeys + "\n" }

// tellKeys gives a guest that runs its authorized keys. One that does not take them within configureWait is told in the background, as is one that boots.
func (v *VM) tellKeys(ctx context.Context) {
	s := v.Snapshot()
	g, ok := s.Machine.(Guester)
	if !ok {
		return
	}
	if s.Ready {
		ctx, cancel := context.WithTimeout(ctx, configureWait)
		defer cancel()
		err := g.Guest().Configure(ctx, guest.Config{AuthorizedKeys: keysFor(&s.Config)})
		if err == nil {
			return
		}
		v.logf("the agent did not take the authorized keys: %v", err)
	}
	v.greet(s.Machine)
}
