package fs

import (
	"maps"
	"slices"
	"strings"

	"banger/vmm"
)

// driver is one row of `vmms`; nil stands for what does not apply.
type driver struct {
	Name   string            `json:"name"`
	Usable bool              `json:"usable"`
	Accel  *string           `json:"accel"`
	Can    []string          `json:"can"`
	Cannot map[string]string `json:"cannot"` // with the reasons
	Reason *string           `json:"reason"` // why it is not usable
}

func driverOf(c vmm.Capabilities) driver {
	d := driver{Name: c.Name, Can: []string{}, Cannot: map[string]string{}}
	if c.Unusable != "" {
		d.Reason = &c.Unusable
		return d
	}
	d.Usable, d.Accel = true, &c.Accel
	for _, f := range vmm.Features {
		if why := c.Lack(f); why != "" {
			d.Cannot[string(f)] = why
		} else {
			d.Can = append(d.Can, string(f))
		}
	}
	return d
}

func vmmsShow(r *request) ([]byte, error) {
	var t table
	for _, c := range r.server.o.Manager.Drivers() {
		d, usable, why := driverOf(c), "usable", []string{}
		if !d.Usable {
			usable, why = "unusable", append(why, *d.Reason)
		}
		for _, f := range slices.Sorted(maps.Keys(d.Cannot)) {
			why = append(why, f+": "+d.Cannot[f])
		}
		for _, s := range []string{cell(d.Name), usable, orUnknown(d.Accel),
			cell(strings.Join(d.Can, ",")), escape(strings.Join(why, "; "))} {
			t.add(s)
		}
		t.endRow()
	}
	return t.text(), nil
}

func vmmsJSONShow(r *request) ([]byte, error) {
	all := []driver{}
	for _, c := range r.server.o.Manager.Drivers() {
		all = append(all, driverOf(c))
	}
	return jsonLine(all)
}
