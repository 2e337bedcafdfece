package main

import (
	"encoding/json"

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
	Image   string   `json:"image"`
}

// parseList returns the rows of list.json with printable text.
func parseList(text string) (rows []listRow, err error) {
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return nil, err
	}
	for i := range rows {
		r := &rows[i]
		for _, s := range []*string{&r.Name, &r.State, r.Health, r.Address, &r.Image} {
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
		text, err := read(c.tree.file("list.json"))
		if err != nil {
			return explain(doing, "", err)
		}
		rows, err := parseList(text)
		if err != nil {
			return failf(exitFailed, "%s: %w", doing, err)
		}
		return c.print(l.list(rows))
	})
	return cmd
}

// list returns the table of VMs.
func (l look) list(rows []listRow) string {
	cells := make([][]string, len(rows))
	for i := range rows {
		r := &rows[i]
		cells[i] = []string{r.Name, r.State, or(r.Health, "-"), floatText(r.CPU), sizeText(r.RSS),
			uptimeText(r.Uptime), or(r.Address, "-"), r.Image}
	}
	return l.table([]column{{head: "NAME"}, {head: "STATE", state: true},
		{head: "HEALTH", state: true}, {head: "CPU%", number: true},
		{head: "MEMORY", number: true}, {head: "UPTIME", number: true}, {head: "ADDRESS"},
		{head: "IMAGE"}}, cells)
}
