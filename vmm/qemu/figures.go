package qemu

import (
	"context"
	"encoding/json"
	"errors"

	"banger/vmm"
)

// BlockStats implements vmm.Machine with query-blockstats.
func (m *Machine) BlockStats(ctx context.Context) (vmm.BlockStats, error) {
	var devices []struct {
		Stats struct {
			ReadBytes  uint64 `json:"rd_bytes"`
			WriteBytes uint64 `json:"wr_bytes"`
			ReadOps    uint64 `json:"rd_operations"`
			WriteOps   uint64 `json:"wr_operations"`
		} `json:"stats"`
	}
	if err := m.call(ctx, "query-blockstats", nil, &devices); err != nil {
		return vmm.BlockStats{}, err
	}
	var sum vmm.BlockStats
	for _, d := range devices {
		sum.ReadBytes += d.Stats.ReadBytes
		sum.WriteBytes += d.Stats.WriteBytes
		sum.ReadOps += d.Stats.ReadOps
		sum.WriteOps += d.Stats.WriteOps
	}
	return sum, nil
}

// metricsQueries are the commands of Metrics. query-stats (qapi/stats.json) is empty under TCG.
var metricsQueries = []struct {
	command string
	args    any
}{
	{"query-stats", map[string]string{"target": "vm"}},
	{"query-blockstats", nil},
	{"query-balloon", nil},
}

// Metrics implements vmm.Machine with QMP's answers by command. Commands that this QEMU
// refuses are left out.
func (m *Machine) Metrics(ctx context.Context) (json.RawMessage, error) {
	answers := map[string]json.RawMessage{}
	for _, q := range metricsQueries {
		var answer json.RawMessage
		err := m.call(ctx, q.command, q.args, &answer)
		var refused *qmpError
		switch {
		case err == nil:
			answers[q.command] = answer
		case !errors.As(err, &refused):
			return nil, err
		}
	}
	return json.Marshal(answers)
}
