package vmm

// leastMemory is the memory of a VM that neither its settings nor its image give any, bytes.
const leastMemory = 128 << 20

// footprint is what an image adds to the needs of its VMs, in bytes. VMs keep it: the image may be
// replaced, and a look at it costs system calls.
type footprint struct{ root, memory int64 }

// footprint returns that of an image. Without an image nothing of it can be used.
func (m *Manager) footprint(image string) footprint {
	i, err := m.o.Images.Image(image)
	if err != nil {
		return footprint{}
	}
	return i.footprint()
}

func (i *Image) footprint() footprint { return footprint{i.RootSize, i.Memory} }

// GuestMemory returns how much memory a VM with these settings has, in bytes. 0 in the settings
// stands for what the image needs, which is the argument.
func (c *Config) GuestMemory(image int64) int64 {
	switch {
	case c.Memory > 0:
		return c.Memory
	case image > 0:
		return image
	}
	return leastMemory
}

// hostMemory returns how many bytes of the host a VM may use while it runs.
func (m *Manager) hostMemory(c *Config, image footprint) int64 {
	return m.driver(c.VMM).HostMemory(&Spec{Config: *c, Image: Image{Memory: image.memory}})
}

// bill returns what a VM with that record and image counts for.
func (m *Manager) bill(r *Record, image footprint) bill {
	b := bill{uid: m.ledger.user(r.Owner.UID)}
	b.amounts[QuotaVMs] = 1
	b.amounts[QuotaDisk] = saturating(r.Config.Disk, image.root)
	if !r.State.Down() {
		b.amounts[QuotaCPUs] = int64(r.Config.CPUs)
		b.amounts[QuotaMemory] = r.Config.GuestMemory(image.memory)
		b.host = m.hostMemory(&r.Config, image)
	}
	return b
}

// claim is what a changed record counts for, while it is made durable. account or drop end it.
type claim struct {
	bill  bill
	image footprint
	hold  hold
}

// claim counts what a changed record adds to what the VM counts for. The caller has the turn, and
// may know the image. ErrQuota, ErrNoMemory.
func (v *VM) claim(r *Record, image *footprint) (c claim, err error) {
	s := v.Snapshot()
	switch {
	case image != nil:
		c.image = *image
	case r.Config.Image != s.Config.Image || r.Base != s.Base:
		c.image = v.m.footprint(r.Config.Image)
	default:
		c.image = v.image
	}
	c.bill = v.m.bill(r, c.image)
	c.hold, err = v.m.ledger.claim(&v.charge, c.bill)
	return c, err
}

// account makes a claim what the VM counts for. The caller has the turn.
func (v *VM) account(c claim) {
	v.m.ledger.settle(&v.charge, c.bill, c.hold)
	v.image = c.image
}

// drop ends a claim whose record was not changed.
func (v *VM) drop(c claim) { v.m.ledger.drop(c.hold) }

// savedBytes returns what the snapshots count for. The clusters of all of them were allocated when
// the newest was taken, or earlier. So the disks never need more than that and their full length.
func (s *Snapshot) savedBytes() int64 {
	if len(s.Saved) == 0 {
		return 0
	}
	return s.Saved[len(s.Saved)-1].Size
}
