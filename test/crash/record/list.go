package record

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/kapernikov/osctl/test/crash/model"
)

// Describe lists everything that a state holds, a line each, for comparing two.
func (w *World) Describe(s model.State) []string {
	var lines []string
	for _, r := range w.Roots {
		n := w.Nodes[r.Name]
		if r.Block {
			lines = append(lines, fmt.Sprintf("%s %x", r.Name, s.Volume(n).Hash()))
			continue
		}
		lines = describe(s, n, r.Name, map[*model.Node]string{}, lines)
	}
	return lines
}

func describe(s model.State, n *model.Node, name string, seen map[*model.Node]string, lines []string) []string {
	if first, ok := seen[n]; ok {
		return append(lines, name+" is "+first)
	}
	seen[n] = name
	line := fmt.Sprintf("%s kind %d %s", name, n.Kind, n.Target)
	a := s.Attributes(n)
	for _, key := range slices.Sorted(maps.Keys(a)) {
		line += fmt.Sprintf(" %s=%q", key, a[key])
	}
	if n.Kind == model.File {
		line += fmt.Sprintf(" %d bytes %.8x", len(s.Content(n)), sha256.Sum256(s.Content(n)))
	}
	lines = append(lines, line)
	for _, child := range slices.Sorted(maps.Keys(s.Entries(n))) {
		lines = describe(s, s.Entries(n)[child], path.Join(name, child), seen, lines)
	}
	return lines
}
