package vmm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"banger/internal/host"
	"banger/internal/sshkeys"
	"banger/vmm/guest"
)

const (
	configureWait = 3 * time.Second        // bounds the agent's work on the guest's settings
	greetAgain    = 100 * time.Millisecond // after the first failed greeting, then twice as long
	greetAtLast   = 5 * time.Second        // and at most this
)

// greet waits, in the background, until the agent of a new machine answers, and sends the guest its
// settings.
func (v *VM) greet(machine Machine) {
	if machine.Guest() == nil {
		return
	}
	v.whileRuns(machine, func(ctx context.Context) {
		greeted := insist(ctx, func() bool {
			err := v.introduce(ctx, machine)
			if err != nil && ctx.Err() == nil {
				v.logf("the agent has not accepted its settings, trying again: %v", err)
			}
			return err == nil
		})
		if !greeted {
			return
		}
		v.greetClock(ctx, machine) // before it is ready: what root sets then stays
		if err := v.ballooned(ctx, machine); err != nil {
			v.logf("%v", err)
		}
		v.publish(func(s *Snapshot) {
			if s.Machine == machine {
				s.Ready, s.ReadyIn = true, time.Since(s.Since)
			}
		})
	})
}

// whileRuns calls f in the background. Its context ends with the machine and with the daemon.
func (v *VM) whileRuns(machine Machine, f func(ctx context.Context)) {
	v.m.spawn(func() {
		ctx, cancel := endsWith(v.m.ctx, machine.Done())
		defer cancel()
		ctx, cancel = endsWith(ctx, v.m.closing)
		defer cancel()
		f(ctx)
	})
}

// insist calls try until that succeeds, with a longer wait each time. It is false once ctx ends.
func insist(ctx context.Context, try func() bool) bool {
	for wait := greetAgain; !try(); wait = min(2*wait, greetAtLast) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// introduce waits for the agent and sets host name, address and clock.
func (v *VM) introduce(ctx context.Context, machine Machine) error {
	g := machine.Guest()
	info, err := g.Ping(ctx)
	if err != nil {
		return err
	}
	if info.Ends {
		v.followProgram(machine)
	}
	c := v.guestConfig()
	s := v.Snapshot()
	c.AuthorizedKeys = keysFor(&s.Config)
	key, err := v.hostKey()
	if err != nil { // a full disk must not keep the guest from its address
		v.m.o.Log.Error("cannot keep an ssh host key for a VM", "vm", s.Name, "err", err)
	}
	c.HostKey = key
	c.Time = time.Now()
	ctx, cancel := context.WithTimeout(ctx, configureWait)
	defer cancel()
	return g.Configure(ctx, c)
}

// guestConfig returns the guest's settings, from its start on. Only a greeting adds time and keys.
func (v *VM) guestConfig() guest.Config {
	s := v.Snapshot()
	c := guest.Config{Hostname: s.Name, MAC: s.MAC}
	if s.Config.Net == NetBridge && s.Address.IsValid() {
		c.Address = netip.PrefixFrom(s.Address, v.m.o.Network.Prefix().Bits())
		c.Gateway = v.m.o.Network.Gateway()
		c.Address6, c.Gateway6 = v.m.o.Network.Address6(s.Address), v.m.o.Network.Gateway6()
		c.MTU = v.m.o.Network.MTU()
		c.DNS = v.m.o.DNS
	} else if s.Config.Net == NetUser {
		c.Address, c.Gateway, c.DNS = UserAddress, UserGateway, []netip.Addr{UserDNS}
	}
	return c
}

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

// addSeed adds the seed disk to the spec of a guest that boots its own kernel. It writes the disk
// only if its content changes.
func (v *VM) addSeed(spec *Spec) error {
	if !spec.Image.Firmware {
		return nil
	}
	seed, err := v.m.o.Images.Seed(spec.ID, spec.Config.Net, v.guestConfig())
	if err == nil {
		path := filepath.Join(spec.Dir, DiskSeed)
		spec.Disks = append(spec.Disks, Disk{Path: path, Format: "raw", ReadOnly: true})
		err = replaceFile(path, seed)
	}
	if err != nil {
		return fmt.Errorf("cannot make its seed disk: %w", err)
	}
	return nil
}

// replaceFile replaces the file's content in one step, unless it is the same. It syncs nothing: the
// next call replaces what a crash has left.
func replaceFile(path string, content []byte) error {
	old, err := host.ReadRegular(path, host.AnyOwner, int64(len(content)))
	if err == nil && bytes.Equal(old, content) {
		return nil
	}
	tmp := path + NewSuffix
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	return err
}
