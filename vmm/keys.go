package vmm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"banger/internal/sshkeys"
	"banger/vmm/guest"
)

const maxAuthorizedKeys = 32 << 10 // bytes, for which an agent's request has room

func checkAuthorizedKeys(lines string) error {
	if len(lines) > maxAuthorizedKeys {
		return fmt.Errorf("authorized_keys has %d bytes, %d are allowed: %w",
			len(lines), maxAuthorizedKeys, ErrTooBig)
	}
	if err := sshkeys.CheckAuthorized(lines); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return nil
}

// hostKey returns the VM's private ssh host key as PEM. The first call makes the key, durably, in
// the VM's directory.
func (v *VM) hostKey() (string, error) {
	private, public, err := sshkeys.HostKey(filepath.Join(v.Snapshot().Dir, HostKeyFile))
	if err != nil {
		return "", err
	}
	v.public.Store(&public)
	return private, nil
}

// HostKey returns the guest's public ssh host key, as `ssh-ed25519 AAAA...`. It is empty before the
// VM's first start.
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

// keysFor returns the keys as an agent expects them. The text is never empty: an agent keeps its
// keys when it receives none.
func keysFor(c *Config) string { return c.AuthorizedKeys + "\n" }

// sendKeys sends a running guest its authorized keys. If its agent does not accept them within
// configureWait, or is not ready, a greeting sends them in the background.
func (v *VM) sendKeys(ctx context.Context) {
	s := v.Snapshot()
	agent := s.Agent()
	if agent == nil {
		return
	}
	if s.Ready {
		ctx, cancel := context.WithTimeout(ctx, configureWait)
		defer cancel()
		err := agent.Configure(ctx, guest.Config{AuthorizedKeys: keysFor(&s.Config)})
		if err == nil {
			return
		}
		v.logf("the agent did not accept the authorized keys: %v", err)
	}
	v.greet(s.Machine)
}
