import java.io.PrintStream;
import java.util.Random;

/**
 * A program with a live set and garbage: a cache of arrays of 64 KiB in which random entries are replaced for ever. An
 * operation replaces 1 MiB; its time, collections included, is printed in microseconds.
 */
final class Heap {
    private static final int ENTRY = 64 << 10;
    private static final int ENTRIES_PER_OPERATION = 16;

    public static void main(String[] args) {
        int live = Integer.parseInt(args[0]);
        long nanos = Long.parseLong(args[1]) * 1_000_000_000L;
        int[] times = new int[1 << 18];
        int done = 0;
        byte[][] cache = new byte[live * ENTRIES_PER_OPERATION][];
        Random random = new Random(1);
        long begin = System.nanoTime();
        String end = "whole";
        try {
            while (System.nanoTime() - begin < nanos && done < times.length) {
                long before = System.nanoTime();
                for (int i = 0; i < ENTRIES_PER_OPERATION; i++) {
                    byte[] entry = new byte[ENTRY];
                    for (int at = 0; at < ENTRY; at += 64) {
                        entry[at] = (byte) random.nextInt();
                    }
                    // The first round fills it, so that the live set grows as a real cache does.
                    int slot = done < live ? done * ENTRIES_PER_OPERATION + i : random.nextInt(cache.length);
                    cache[slot] = entry;
                }
                times[done++] = (int) Math.max(1, (System.nanoTime() - before) / 1_000);
            }
        } catch (OutOfMemoryError e) {
            cache = null;
            end = "refused";
        }
        long took = (System.nanoTime() - begin) / 1_000;
        PrintStream out = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), false);
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < done; i++) {
            text.append(times[i]).append('\n');
        }
        out.print(text);
        out.flush();
        System.err.println("heap " + end + " " + done + " " + took);
    }
}
