package vmm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

func (v *VM) start(ctx context.Context) error {
	name := v.Snapshot().Name
	if !v.Snapshot().Rebooting {
		v.reboots = 0
	}
	began := time.Now()
	machine, err := v.boot(ctx)
	var refused *refusal
	if errors.As(err, &refused) {
		err = fmt.Errorf("cannot start %s: %w", name, refused.err)
		v.Fail(err) // nobody else does where the writer has not waited
		return err
	}
	if err != nil && ctx.Err() != nil {
		if v.Snapshot().Rebooting && v.m.ctx.Err() != nil {
			return v.leftRebooting()
		}
		if e := v.enter(Stopped, ended("")); e != nil {
			return e
		}
		return fmt.Errorf("the start of %s was cancelled: %w", name, ErrGone)
	}
	if err != nil {
		return v.fails(fmt.Errorf("cannot start %s: %w", name, err))
	}
	err = v.enter(Running, func(d *draft) {
		d.Process, d.Started = machine.Process(), began
		d.run = &CurrentRun{Machine: machine, Since: began, Address6: v.Snapshot().Address6}
		d.fail("")
	})
	if err != nil {
		// A machine without a record must not run: the next daemon would not find it.
		if e := v.end(context.WithoutCancel(ctx), machine, err.Error()); e != nil {
			return errors.Join(err, e)
		}
		return v.fails(err)
	}
	if err := v.forward(context.WithoutCancel(ctx)); err != nil {
		err = fmt.Errorf("cannot start %s: %w", name, err)
		if e := v.end(context.WithoutCancel(ctx), machine, err.Error()); e != nil {
			return errors.Join(e, v.fails(err))
		}
		return v.fails(err)
	}
	v.greet(machine)
	return nil
}

// refusal is the error of a start that has changed nothing.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }

// boot records the intent, makes what the machine needs and starts it.
func (v *VM) boot(ctx context.Context) (Machine, error) {
	s := v.Snapshot()
	driver := v.m.drivers[s.Config.VMM]
	if driver == nil {
		err := fmt.Errorf("this host has no vmm %q: %w", s.Config.VMM, ErrUnsupported)
		return nil, &refusal{err}
	}
	image, err := v.m.o.Images.Image(s.Config.Image)
	if err != nil {
		return nil, &refusal{err}
	}
	if err := checkLoader(&s.Config, &image); err != nil { // the image may have been replaced
		return nil, &refusal{err}
	}
	if err := v.m.o.Network.Check(s.Config.Net); err != nil {
		return nil, &refusal{err}
	}
	bridged := s.Config.Net == NetBridge && driver.Capabilities().Lack(FeatureBridge) == ""
	var address netip.Addr
	if bridged {
		n, store := v.m.o.Network, v.m.o.Store
		address, err = store.Lease(context.WithoutCancel(ctx), v.serial, n.Prefix(), n.Gateway())
		if err != nil {
			return nil, &refusal{fmt.Errorf("cannot lease an address: %w", err)}
		}
	}
	if err := s.checkBase(&image); err != nil {
		return nil, &refusal{err}
	}
	needs := image.footprint() // it may have been replaced since the VM was last counted
	err = v.enterWith(Starting, func(d *draft) error {
		d.Run++
		d.image = &needs
		d.BootID, d.Process = v.m.bootID, Process{}
		if image.Name != BuiltinImage {
			d.Base = image.Digest
		}
		if bridged {
			d.Address = address
			d.run = &CurrentRun{Address6: v.m.o.Network.Address6(address).Addr()}
			return v.connect(&d.Record, d.Config.Publications())
		}
		return probe(d.Config.Publications())
	})
	if err != nil {
		v.m.o.Network.Disconnect(v.serial)
		return nil, &refusal{err}
	}
	spec := v.spec(image)
	if err := v.tidy(ctx); err != nil {
		return nil, fmt.Errorf("cannot finish a change of its snapshots: %w", err)
	}
	if err := v.makeDisks(ctx, spec, driver); err != nil {
		return nil, err
	}
	if err := v.addSeed(spec); err != nil {
		return nil, err
	}
	v.logf("start %d of %s, image %s", v.Snapshot().Run, s.Name, image.Name)
	log, err := v.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	spec.Log, spec.LogFile = ownLog{log}, log
	if bridged {
		tap, err := v.m.o.Network.Tap(ctx, v.serial, s.ID)
		if err != nil {
			return nil, fmt.Errorf("cannot connect it: %w", err)
		}
		defer tap.Close()
		spec.NIC.Tap = tap
	}
	return driver.Start(ctx, spec, v.notify)
}

// uid returns the uid of the VM's VMM, -1 for the daemon's own.
func (v *VM) uid() int {
	if v.m.o.VMUIDBase == 0 {
		return -1
	}
	return v.m.o.VMUIDBase + int(v.serial)
}

func (v *VM) spec(image Image) *Spec {
	s := v.Snapshot()
	spec := &Spec{
		Serial: v.serial, ID: s.ID, Name: s.Name,
		StateDir: v.m.o.StateDir, Dir: s.Dir,
		Config: s.Config, Image: image, Snapshots: len(s.Saved),
		NIC: NIC{Mode: s.Config.Net, MAC: s.MAC},
		UID: v.uid(), GID: v.uid(),
	}
	spec.Disks = disksOf(s.Dir, &s.Config, &image)
	return spec
}
