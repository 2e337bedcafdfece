package main

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/printable"
)

// listRow is one VM of list.json. The keys of stats.json are the same; nil stands for unknown.
type listRow struct {
	Name    string   `json:"name"`
	State   string   `json:"state"`
	Health  *string  `json:"health"`
	CPU     *float64 `json:"cpu_percent"`
	RSS     *int64   `json:"rss_bytes"`
	Address *string  `json:"address"`
	Uptime  *float64 `json:"uptime"`
}

// parseList returns the rows of list.json with printable text.
func parseList(text string) (rows []listRow, err error) {
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return nil, err
	}
	for i := range rows {
		r := &rows[i]
		for _, s := range []*string{&r.Name, &r.State, r.Health, r.Address} {
			if s != nil {
				*s = printable.Sentence(*s) // the daemon escaped it for JSON only
			}
		}
	}
	return rows, nil
}

func (c *client) lsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ls", Short: "List the VMs",
		Long: `List the VMs: name, state, last known health, CPU percent of one core, resident memory,
address, uptime, image. On a terminal with a heading, units and colours, else the file ` +
			"`list`.",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
	}
	twin, looks := jsonFlag(cmd), c.lookFlags(cmd)
	cmd.RunE = c.onTree(func([]string) error {
		const doing = "cannot list the VMs"
		l := looks()
		if file := twin("list"); file != "list" || !l.people {
			return c.show(doing, c.tree.file(file))
		}
		text, err := read(c.tree.file("list"))
		if err != nil {
			return explain(doing, "", err)
		}
		return c.print(l.list(text))
	})
	return cmd
}

// listColumns are those of the file `list`, whose cells are printable words.
var listColumns = []column{{head: "NAME"}, {head: "STATE", state: true},
	{head: "HEALTH", state: true}, {head: "CPU%", number: true}, {head: "MEMORY", bytes: true},
	{head: "ADDRESS"}, {head: "UPTIME", number: true}, {head: "IMAGE"}}

// list returns the table of VMs of a text of `list`. It is cheaper to parse than list.json.
func (l look) list(text string) string {
	var rows [][]string
	for _, line := range lines(text) {
		row := strings.Fields(line)
		if len(row) != len(listColumns) {
			continue // not of this daemon
		}
		if cpu, err := strconv.ParseFloat(row[3], 64); err == nil {
			row[3] = floatText(&cpu)
		}
		if up, err := strconv.ParseFloat(row[6], 64); err == nil {
			row[6] = uptimeText(&up)
		}
		rows = append(rows, row)
	}
	return l.table(listColumns, rows)
}
