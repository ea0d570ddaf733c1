// Package bench measures osctl against what it could be at best: real programs,
// a real registry and containerd, slots on loop devices. Its figures are ratios
// within one run, since seconds of a shared machine mean nothing. Nothing here
// runs in "go test" without -bench, and no figure fails a test
// (docs/benchmarks.md has figures and how to repeat them).
package bench

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// rounds is how often the two ways are measured, $OSCTL_BENCH_ROUNDS or 5.
func rounds(b *testing.B) int {
	b.Helper()
	text := os.Getenv("OSCTL_BENCH_ROUNDS")
	if text == "" {
		return 5
	}
	n, err := strconv.Atoi(text)
	check(b, err)
	return n
}

func BenchmarkOsctl(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Fatal("needs root, for loop devices and containerd")
	}
	dir, err := os.MkdirTemp("", "bench")
	check(b, err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	m := newMachine(b, dir)
	tree := filepath.Join(dir, "tree")
	fillTree(b, tree)
	first := m.publish(b, tree, "100.0", "1024")
	say("image: %s with %s of files, compressed %s in %d packs", size(first.size), size(treeSize), size(first.compressed), len(first.packs))
	say("osctl build: %.1f CPU seconds, %.1f s, peak memory %s", first.build.CPU.Seconds(), first.build.Wall.Seconds(), size(first.build.MaxRSS))

	levels(b, first)
	m.facts(b)
	m.compare(b, first)
	m.second(b, tree, first)
	m.large(b, tree)
}

// facts are printed for the record.
func (m *machine) facts(b *testing.B) {
	info, err := os.Stat(m.osctl)
	check(b, err)
	var wall, cpu []time.Duration
	var memory []int64
	for range 20 {
		c := m.run(b, m.osctl, "--version")
		wall, cpu, memory = append(wall, c.Wall), append(cpu, c.CPU), append(memory, c.MaxRSS)
	}
	say("binary: %s, stripped and static; osctl --version: %d ms, %d ms CPU, %s of memory",
		size(info.Size()), median(wall).Milliseconds(), median(cpu).Milliseconds(), size(median(memory)))
}

// compare measures osctl and the pipeline in turns, each on a slot that was never
// written; the registry's files are cached for both, nothing of a slot is.
func (m *machine) compare(b *testing.B, i image) {
	var a, p []cost
	var ratios, cpu []float64
	for round := range rounds(b) {
		var pair [2]cost
		for _, which := range []int{round % 2, 1 - round%2} {
			m.newSlot(b, i.size)
			m.forget(b)
			m.warm(b)
			if which == 0 {
				pair[0] = m.upgrade(b, i)
			} else {
				pair[1] = m.pipeline(b, i)
			}
			if round == 0 {
				m.verify(b, i)
			}
		}
		say("round %d: osctl %.2f s (%.2f CPU, containerd %.2f), pipeline %.2f s (%.2f CPU)", round+1, pair[0].Wall.Seconds(),
			pair[0].CPU.Seconds(), pair[0].Daemon.Seconds(), pair[1].Wall.Seconds(), pair[1].CPU.Seconds())
		a, p = append(a, pair[0]), append(p, pair[1])
		ratios = append(ratios, pair[0].Wall.Seconds()/pair[1].Wall.Seconds())
		cpu = append(cpu, (pair[0].CPU+pair[0].Daemon).Seconds()/pair[1].CPU.Seconds())
	}
	slices.Sort(ratios)
	say("wall time, osctl / pipeline: median %.2f (%.2f to %.2f), goal 1.25", median(ratios), ratios[0], ratios[len(ratios)-1])
	say("CPU time, osctl and containerd / pipeline: median %.2f", median(cpu))
	b.ReportMetric(median(ratios), "osctl/pipeline")
	worst := slices.MaxFunc(a, func(x, y cost) int { return int(x.MaxRSS - y.MaxRSS) })
	say("peak memory of osctl at %s: %s (worst of all rounds), goal 64.0 MiB", size(i.size), size(worst.MaxRSS))
	say("written to the data partition / compressed size: %.3f; to the slot / its size: %.3f (pipeline %.3f); read from the slot / its size: %.3f",
		part(a[0].Data, i.compressed), part(a[0].Slot, i.size), part(p[0].Slot, i.size), part(a[0].SlotRead, i.size))
}

// second measures upgrades of a slot that holds an earlier release.
func (m *machine) second(b *testing.B, tree string, first image) {
	changed := changeTree(b, tree)
	next := m.publish(b, tree, "100.1", "1024")
	differs := difference(b, first.raw(b), next.raw(b))
	m.newSlot(b, first.size)
	m.forget(b)
	m.upgrade(b, first)
	c := m.upgrade(b, next)
	m.verify(b, next)
	say("next release (%d files longer by a line) over this one: %s of blocks differ, %s written to the slot; %.2f s",
		changed, size(differs), size(c.Slot), c.Wall.Seconds())
	m.forget(b)
	c = m.upgrade(b, next)
	say("the same release again: %s written to the slot, %s to the data partition; %.2f s", size(c.Slot), size(c.Data), c.Wall.Seconds())
}

// large measures memory with an image of four times the size.
func (m *machine) large(b *testing.B, tree string) {
	i := m.publish(b, tree, "100.2", "4096")
	m.newSlot(b, i.size)
	m.forget(b)
	c := m.upgrade(b, i)
	say("peak memory of osctl at %s, sparse: %s, goal 64.0 MiB; %s written to the slot", size(i.size), size(c.MaxRSS), size(c.Slot))
	b.ReportMetric(float64(c.MaxRSS)/(1<<20), "MiB-at-4GiB")
}

// warm reads the registry's files, so that its disk has no part in the figures.
func (m *machine) warm(b *testing.B) {
	b.Helper()
	check(b, filepath.Walk(m.registry.Root, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.Copy(io.Discard, file)
		return err
	}))
}

// verify compares the slot with the image.
func (m *machine) verify(b *testing.B, i image) {
	b.Helper()
	file, err := os.Open(m.slot.device)
	check(b, err)
	defer file.Close()
	if n := difference(b, i.raw(b), io.LimitReader(file, i.size)); n != 0 {
		b.Fatalf("the slot differs from the image in %d bytes", n)
	}
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func part(n, of int64) float64 { return float64(n) / float64(of) }

func median[T int64 | float64 | time.Duration](list []T) T {
	sorted := slices.Clone(list)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

func size(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
