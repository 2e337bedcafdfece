package store

import (
	"database/sql/driver"
	"fmt"
	"strings"
	"time"

	"banger/vmm"
)

// column is a column of the table vms.
type column struct {
	name  string
	field func(*vmm.Record) any // returns a pointer, to scan into and to read the value from
}

// recordColumns are the columns that Update writes beside the settings.
var recordColumns = []column{
	{"id", func(r *vmm.Record) any { return &r.ID }},
	{"name", func(r *vmm.Record) any { return &r.Name }},
	{"uid", func(r *vmm.Record) any { return &r.Owner.UID }},
	{"gid", func(r *vmm.Record) any { return &r.Owner.GID }},
	{"mode", func(r *vmm.Record) any { return &r.Owner.Mode }},
	{"created", func(r *vmm.Record) any { return (*nanoseconds)(&r.Created) }},
	{"started", func(r *vmm.Record) any { return (*nanoseconds)(&r.Started) }},
	{"touched", func(r *vmm.Record) any { return (*nanoseconds)(&r.Touched) }},
	{"state", func(r *vmm.Record) any { return &r.State }},
	{"error", func(r *vmm.Record) any { return &r.Error }},
	{"boot_id", func(r *vmm.Record) any { return &r.BootID }},
	{"pid", func(r *vmm.Record) any { return &r.Process.PID }},
	{"pid_start", func(r *vmm.Record) any { return &r.Process.StartTime }},
	{"run", func(r *vmm.Record) any { return &r.Run }},
	{"base", func(r *vmm.Record) any { return &r.Base }},
	{"rebooting", func(r *vmm.Record) any { return &r.Rebooting }},
	{"held", func(r *vmm.Record) any { return &r.Held }},
	{"stop_by", func(r *vmm.Record) any { return (*nanoseconds)(&r.StopBy) }},
}

// columns returns the names of all columns that Update writes, in the order of fields.
func columns() []string {
	var names []string
	for _, s := range vmm.Settings {
		names = append(names, strings.ReplaceAll(s.Name, ".", "_"))
	}
	for _, c := range recordColumns {
		names = append(names, c.name)
	}
	return names
}

// fields returns pointers to the fields of a record, in the order of columns.
func fields(r *vmm.Record) []any {
	all := make([]any, 0, len(vmm.Settings)+len(recordColumns)+3)
	for i := range vmm.Settings {
		s := &vmm.Settings[i]
		if s.Kind.Text {
			all = append(all, settingText{s, &r.Config})
		} else {
			all = append(all, s.Field(&r.Config))
		}
	}
	for _, c := range recordColumns {
		all = append(all, c.field(r))
	}
	return all
}

// settingText is a setting whose column holds the text of its file.
type settingText struct {
	setting *vmm.Setting
	config  *vmm.Config
}

// Value implements driver.Valuer.
func (t settingText) Value() (driver.Value, error) { return t.setting.Show(t.config), nil }

// Scan implements sql.Scanner.
func (t settingText) Scan(v any) error {
	text, ok := v.(string)
	if !ok {
		return fmt.Errorf("%s is %T, not a text", t.setting.Name, v)
	}
	return t.setting.Set(t.config, text)
}

// nanoseconds is a time that its column holds as nanoseconds since 1970, or 0 for the zero time.
type nanoseconds time.Time

// Value implements driver.Valuer.
func (n nanoseconds) Value() (driver.Value, error) { return nanos(time.Time(n)), nil }

// Scan implements sql.Scanner.
func (n *nanoseconds) Scan(v any) error {
	count, ok := v.(int64)
	if !ok {
		return fmt.Errorf("a time is %T, not an integer", v)
	}
	*n = nanoseconds(fromNanos(count))
	return nil
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
