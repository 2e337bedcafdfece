package fs

import (
	"strconv"

	"banger/collector"
)

// ports returns what listens in the request's VM. Asking is a use of the VM.
func ports(r *request) ([]collector.Port, error) {
	r.vm.Touch()
	p, err := r.server.o.Collector.Ports(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	return p.Rows, nil
}

func portsShow(r *request) ([]byte, error) {
	list, err := ports(r)
	if err != nil {
		return nil, err
	}
	var t table
	for _, p := range list {
		for _, c := range [...]string{
			p.Scheme, strconv.Itoa(p.Port), cell(p.Endpoint), cell(p.Address),
			strconv.Itoa(p.PID), cell(p.Process), escape(p.Command),
		} {
			t.add(c)
		}
		t.endRow()
	}
	return t.text(), nil
}

func portsJSONShow(r *request) ([]byte, error) {
	list, err := ports(r)
	if err != nil {
		return nil, err
	}
	type port struct {
		Scheme   string `json:"scheme"`
		Port     int    `json:"port"`
		Endpoint string `json:"endpoint"`
		Address  string `json:"bind"`
		PID      int    `json:"pid"`
		Process  string `json:"process"`
		Command  string `json:"command"`
	}
	rows := make([]port, len(list))
	for i, p := range list {
		rows[i] = port(p)
	}
	return jsonLine(rows)
}
