package fs

import (
	"time"

	"banger/vmm"
)

// listRow is one row of `list`. Unknown values are nil.
type listRow struct {
	Name       string    `json:"name"`
	State      vmm.State `json:"state"`
	Health     *string   `json:"health"`
	CPUPercent *float64  `json:"cpu_percent"`
	RSSBytes   *int64    `json:"rss_bytes"`
	Address    *string   `json:"address"`
	Uptime     *float64  `json:"uptime"`
	Image      string    `json:"image"`
}

// listRows makes one pass over snapshots and the cache. It collects nothing.
func listRows(r *request) []listRow {
	vms := r.server.o.Manager.VMs()
	list := make([]listRow, 0, len(vms))
	for _, v := range vms {
		s := v.Snapshot()
		row := listRow{Name: s.Name, State: s.State, Image: s.Config.Image}
		stats, health, _ := r.server.o.Collector.Known(v)
		if health != "" {
			row.Health = &health
		}
		if stats != nil && s.State.Alive() {
			row.CPUPercent, row.RSSBytes = stats.CPUPercent, stats.RSSBytes
		}
		if a := s.GuestAddress(); a.IsValid() {
			text := a.String()
			row.Address = &text
		}
		if s.State.Alive() && !s.Since.IsZero() {
			up := round(time.Since(s.Since).Seconds())
			row.Uptime = &up
		}
		list = append(list, row)
	}
	return list
}

func listShow(r *request) ([]byte, error) {
	list := listRows(r)
	t := newTable(len(list), 8, 8)
	for i := range list {
		l := &list[i]
		t.add(l.Name)
		t.add(string(l.State))
		t.add(orUnknown(l.Health))
		t.addFloat(l.CPUPercent)
		t.addInt(l.RSSBytes)
		t.add(orUnknown(l.Address))
		t.addFloat(l.Uptime)
		t.add(cell(l.Image))
		t.endRow()
	}
	return t.text(), nil
}

func orUnknown(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}

func listJSONShow(r *request) ([]byte, error) { return jsonLine(listRows(r)) }
