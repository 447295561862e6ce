# The answers of GitHub Linguist's own code as TSV: path, language, generated, vendored, documentation, binary.
#   ruby benchmarks/linguist.rb LINGUIST FOLDER < paths > answers.tsv
# LINGUIST is a checkout, compiled (`rake compile samples`); with Debian's ruby-github-linguist its linguist.so may be copied there.
$LOAD_PATH.unshift File.join(ARGV[0], "lib")
require "linguist"
folder = ARGV[1]
STDIN.each_line(chomp: true) do |path|
  blob = Linguist::FileBlob.new(File.join(folder, path), folder)
  flags = [blob.generated?, blob.vendored?, blob.documentation?, blob.binary?].map { |flag| flag ? 1 : 0 }
  puts [path, blob.language&.name || "Unknown", *flags].join("\t")
end
