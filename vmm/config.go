package vmm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	maxNameLen    = 63
	maxCPUs       = 256
	maxMemory     = 1 << 42
	maxDisk       = 1 << 44
	maxCmdlineLen = 2048
)

// CheckName refuses all but a DNS label in lower case (RFC 1123). ErrNameTooLong or ErrInvalid.
func CheckName(name string) error {
	if len(name) > maxNameLen {
		return fmt.Errorf("%.20q... is not a VM's name: it has %d bytes, %d are allowed: %w",
			name, len(name), maxNameLen, ErrNameTooLong)
	}
	bad := name == "" || name[0] == '-' || name[len(name)-1] == '-'
	for _, c := range []byte(name) {
		bad = bad || c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z')
	}
	if bad {
		return fmt.Errorf("%q is not a VM's name: use a-z, 0-9 and, in between, '-': %w",
			name, ErrInvalid)
	}
	return nil
}

// checkConfig refuses settings c that a VM with the settings old cannot have. It raises the memory
// to what a new image needs.
func (m *Manager) checkConfig(old, c *Config) error {
	image, err := m.o.Images.Image(c.Image)
	if err != nil && c.Image != old.Image {
		if errors.Is(err, ErrInvalid) {
			return err
		}
		return fmt.Errorf("%v: %w", err, ErrInvalid)
	}
	if c.Image != old.Image && c.Memory == old.Memory {
		c.Memory = max(c.Memory, image.Memory) // enough for the image before
	}
	for i := range Settings {
		if err := Settings[i].Check(c); err != nil {
			return err
		}
	}
	if c.Memory < image.Memory || c.Memory > maxMemory {
		return fmt.Errorf("memory must be %d (what image %s needs) to %d bytes, not %d: %w",
			image.Memory, c.Image, int64(maxMemory), c.Memory, ErrInvalid)
	}
	if c.Disk < old.Disk {
		return fmt.Errorf("disk may grow, never shrink: it has %d bytes, not %d: %w",
			old.Disk, c.Disk, ErrInvalid)
	}
	if err := m.checkHost(old, c, image.footprint()); err != nil {
		return err
	}
	if c.Cmdline != old.Cmdline || c.Image != old.Image {
		if err := checkLoader(c, &image); err != nil {
			return err
		}
	}
	if _, ok := m.drivers[c.VMM]; !ok {
		return fmt.Errorf("vmm %q is not one of those here (%s): %w",
			c.VMM, strings.Join(m.driverNames(), ", "), ErrUnsupported)
	}
	if c.Net != old.Net {
		if err := m.o.Network.Check(c.Net); err != nil {
			return err
		}
	}
	if err := m.checkLimits(old, c); err != nil {
		return err
	}
	if c.AuthorizedKeys == old.AuthorizedKeys { // an earlier version may have accepted these
		return nil
	}
	return checkAuthorizedKeys(c.AuthorizedKeys)
}

// checkLoader refuses a kernel's command line for an image that boots by its own boot loader.
func checkLoader(c *Config, image *Image) error {
	if c.Cmdline != "" && image.Firmware {
		return fmt.Errorf("image %s boots by its own boot loader, "+
			"which takes no cmdline from outside; make cmdline empty: %w", c.Image, ErrUnsupported)
	}
	return nil
}

// Configure applies change to a copy of the settings and records the result, whole or not at all. A
// change without effect always succeeds. ErrInvalid; ErrBusy for a setting that is not live, unless
// the VM is stopped or failed. It blocks for the VM's turn and the commit.
func (v *VM) Configure(ctx context.Context, change func(*Config) error) error {
	return v.configure(ctx, change, false)
}

// SetImage configures the image. The same name again selects the image of today, if it was replaced
// since the last start.
func (v *VM) SetImage(ctx context.Context, name string) error {
	return v.configure(ctx, func(c *Config) error { c.Image = name; return nil }, true)
}

// replaced reports whether the VM's image was replaced since the last start, and the VM has no
// system disk over the old one.
func (v *VM) replaced(s *Snapshot) bool {
	if s.Base == "" || s.hasOverlay() {
		return false
	}
	image, err := v.m.o.Images.Image(s.Config.Image)
	return err == nil && s.checkBase(&image) != nil
}

func (v *VM) configure(ctx context.Context, change func(*Config) error, newest bool) error {
	changed, err := v.reconfigure(ctx, change, newest)
	if err != nil || len(changed) == 0 {
		return err
	}
	v.emit(EventConfig, strings.Join(changed, " "))
	if slices.Contains(changed, "authorized_keys") {
		v.sendKeys(ctx)
	}
	return nil
}

// reconfigure returns the names of the settings that it changed. newest selects the image of today,
// even if its name does not change.
func (v *VM) reconfigure(
	ctx context.Context, change func(*Config) error, newest bool,
) ([]string, error) {
	t, err := v.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer t.release()
	before := v.Snapshot()
	s := *before // with the new settings
	if err := change(&s.Config); err != nil {
		return nil, fmt.Errorf("cannot configure %s: %w", s.Name, err)
	}
	changed, err := v.checkChange(before, &s, newest)
	if err != nil || len(changed) == 0 {
		return nil, err
	}
	claimed, err := v.claim(&s.Record, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot configure %s: %w", s.Name, err)
	}
	if err := v.admit(&before.Config, &s); err != nil {
		v.drop(claimed)
		return nil, fmt.Errorf("cannot configure %s: %w", s.Name, err)
	}
	if err = v.apply(ctx, before, &s); err != nil {
		v.drop(claimed)
	} else if err = t.commitClaimed(ctx, &draft{Record: s.Record}, claimed); err != nil {
		err = errors.Join(err, v.restrain(context.WithoutCancel(ctx), &s, before))
	}
	v.admitted(before, err)
	return changed, err
}

// checkChange refuses settings of s that the VM may not have. It returns the names of those that
// change. It makes the text of publish canonical and forgets the digest of an image that changes.
func (v *VM) checkChange(before, s *Snapshot, newest bool) ([]string, error) {
	old := &before.Config
	all, err := ParsePublications(s.Config.Publish)
	if err != nil {
		return nil, fmt.Errorf("cannot configure %s: %w", s.Name, err)
	}
	s.Config.Publish = formatPublications(all)
	renewed := newest && s.Config.Image == old.Image && v.replaced(s)
	if s.Config == *old && !renewed {
		return nil, nil
	}
	err = v.m.checkConfig(old, &s.Config)
	if err == nil {
		err = v.m.ledger.alone(s.Owner.UID, old, &s.Config)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot configure %s: %w", s.Name, err)
	}
	names, live := changedSettings(old, &s.Config)
	if renewed {
		names, live = append(names, "image"), false
	}
	if !live && !s.State.Down() {
		return nil, fmt.Errorf("cannot change %s of %s while it is %s: stop it first: %w",
			strings.Join(names, ", "), s.Name, s.State, ErrBusy)
	}
	if s.Config.Image != old.Image && s.hasOverlay() {
		if image, err := v.m.o.Images.Image(s.Config.Image); err != nil || image.Digest != s.Base {
			return nil, fmt.Errorf("cannot change image of %s: "+
				"its system disk holds what was done over %s: "+
				"make a new VM, or write %s to its file restore, which discards that: %w",
				s.Name, old.Image, resetWord, ErrBusy)
		}
	}
	if renewed || s.Config.Image != old.Image && !s.hasOverlay() {
		s.Base = "" // the next start records it
	}
	return names, nil
}

// growDisk grows the disk of a running VM to the size in its settings. If the commit fails
// afterwards, the disk is longer than recorded, which does no harm.
func growDisk(ctx context.Context, s *Snapshot) error {
	if s.State != Running && s.State != Paused {
		return fmt.Errorf("it is %s: %w", s.State, ErrBusy)
	}
	if s.Machine == nil {
		return errNotRecovered
	}
	return s.Machine.GrowDisk(ctx, s.Config.Disk)
}
